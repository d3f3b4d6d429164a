"""Figure of the router's times: median and p20-p80 per call over the number of tokens, one line a provider."""

import matplotlib.pyplot as plt

from g4lab.errors import bad
from g4lab.figures import MUTED, PALETTE, house_style, stamp


def draw_latency(frame, kind: str, source: str):
    """Both readings of `g4lab.bench.router.measure`'s frame side by side; providers without times are left out.

    Raises:
        BadInput: no row of the frame has a time.
    """
    ran = frame[frame.p50_us.notna()] if "p50_us" in frame else frame.iloc[:0]
    if ran.empty:
        raise bad("frame", f"{len(frame)} rows", "at least one provider with times")
    house_style()
    fig, axes = plt.subplots(1, ran.reading.nunique(), figsize=(9.6, 3.6), sharey=True, squeeze=False)
    providers = list(dict.fromkeys(ran.provider))
    for ax, (reading, rows) in zip(axes[0], ran.groupby("reading"), strict=True):
        for provider, of_provider in rows.groupby("provider"):
            line = of_provider.sort_values("tokens")
            floor = "floor" in provider
            color = MUTED if floor else PALETTE[providers.index(provider) % len(PALETTE)]
            ax.plot(line.tokens, line.p50_us, "--" if floor else "o-", color=color, markersize=4, label=provider)
            ax.fill_between(line.tokens, line.p20_us, line.p80_us, color=color, alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", xlabel="tokens", title=f"{reading} L2")
    axes[0][0].set_ylabel("µs per call, median and p20-p80")
    axes[0][-1].legend(fontsize=7.5, loc="upper left")
    stamp(fig, kind, source)
    return fig
