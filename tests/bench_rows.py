"What the benchmark files share: a row from paired ratios, and every part on one thread."
import sys

import numpy as np


def row(id:str, limit, ratios, **more)->dict: # limit: at most, or None
    "Median of the pairs with the 10th and 90th percentile, and whether the limit holds."
    low, mid, high = np.percentile(ratios, [10, 50, 90])
    return dict(id=id, ratio=round(float(mid), 4), low=round(float(low), 4), high=round(float(high), 4), limit=limit, status="ok" if limit is None or mid <= limit else "miss", **more)

def one_thread(
    parts:dict, # name -> a function that yields rows
    only=None, # names of parts; None: all
)->list[dict]: # id, ratio (median of pairs), low and high (10th and 90th percentile), limit (at most), status
    "Rows of the parts, one thread for torch and for the linear algebra."
    import torch
    from threadpoolctl import threadpool_limits
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        with threadpool_limits(1): return [row for name in only or parts for row in parts[name]()]
    finally: torch.set_num_threads(threads)

def show(parts:dict):
    "The command line of a benchmark file: the parts that are named, or all."
    for name in sys.argv[1:] or parts:
        for r in one_thread(parts, [name]): print(*(f"{k}={v}" for k, v in r.items()), flush=True)
