"""What no kernel of the expert layer can undercut: its bytes at the copy bandwidth, its FLOPs at the matmul rate.

Three rows for a shape. "gate_up" and "down" are the two products as kernels of their own: each reads the weights of the
experts touched once, and the activated product of all pairs, h [T K, I], is written by one and read by the other.
"layer" is both in one, of which h may never see memory: less than the sum, and what an expert layer is judged by.
Launches, placing pairs in blocks and padding are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import pandas as pd

from g4lab.bench.ceilings import Ceilings
from g4lab.bench.roofline import COPY, MATMUL
from g4lab.tuning.moe_shapes import BYTES, MoEShape

LAYER = "layer"
PRODUCTS = ("gate_up", "down")


def weight_bytes(shape: MoEShape, touched: float | None = None) -> dict[str, float]:
    """Bytes of the touched experts' weights by product and of the layer. touched: default, those expected."""
    touched = shape.touched if touched is None else touched
    one = touched * shape.hidden * shape.width * BYTES[shape.dtype]
    return {"gate_up": 2 * one, "down": one, LAYER: 3 * one}


def floors(shape: MoEShape, most: Ceilings, touched: float | None = None) -> pd.DataFrame:
    """Columns weights and bytes (with activations), flops, floor_us and binds (which ceiling), a row for each product
    and the layer.

    touched: experts that some token chose; default, as many as expected under the shape's routing.
    """
    weights, size = weight_bytes(shape, touched), BYTES[shape.dtype]
    rows, h = shape.tokens * shape.hidden * size, shape.pairs * shape.width * size  # x or the result; h
    moved = {"gate_up": rows + h, "down": h + rows, LAYER: 2 * rows}
    flops = {"gate_up": shape.flops * 2 / 3, "down": shape.flops / 3, LAYER: shape.flops}
    found = []
    for product in (*PRODUCTS, LAYER):
        total = weights[product] + moved[product]
        us = {COPY: total / most.copy_gbps / 1e3, MATMUL: flops[product] / most.matmul_tflops / 1e6}
        binds = max(us, key=us.get)
        found.append({
            "product": product, "weights": weights[product], "bytes": total, "flops": flops[product],
            "floor_us": us[binds], "binds": binds,
        })  # fmt: skip
    return pd.DataFrame(found)


def table(shapes: Iterable[MoEShape], most: Ceilings) -> pd.DataFrame:
    """`floors` of many shapes under one another, with what names the shape and `touched` (expected) before them."""
    parts = []
    for shape in shapes:
        part = floors(shape, most)
        for at, (name, value) in enumerate({**asdict(shape), "touched": shape.touched}.items()):
            part.insert(at, name, value)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
