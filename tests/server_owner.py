"""Run by test_sglang_server.py: owns a server as a notebook would, reports what it saw, and waits to be killed."""

import json
import sys
import time

import psutil

from g4lab.runners import sglang_server


def main(arguments: dict, prompts: list[list[int]], new_tokens: int) -> None:
    with sglang_server(**arguments) as server:
        answers = [server.answer(prompt, new_tokens, ignore_eos=True) for prompt in prompts]
        report = {
            "tokens": [answer["output_ids"] for answer in answers],
            "cached_tokens": [answer["meta_info"]["cached_tokens"] for answer in answers],
            "counters": server.counters(),
            "expert_load": server.expert_load(),
        }
        report["pids"] = [child.pid for child in psutil.Process().children(recursive=True)]
        print(json.dumps(report), flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
