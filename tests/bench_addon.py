"The add-on and its loop against the trainers they stand in for, in one process, one thread, as ratios of paired CPU seconds (1: equal, less: faster): `python tests/bench_addon.py`. Not collected by pytest."
from __future__ import annotations
import json, os, re, sys, tempfile, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1"); os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np, torch
from torch.utils.data import BatchSampler
from sage_repro.stream.addon import LengthBuckets, importance_trainer, sft_trainer, train_rows
from sage_repro.stream.importance import AdmitAll, SSIS
from sage_repro.stream.replay import ReservoirBuffer

WARM, STEPS, BATCH, VOCAB = 2, 8, 8, 2048 # steps before the clock, steps on it; samples in a batch; words of the tiny model

def lengths(n:int, rng)->np.ndarray: # (n,) tokens
    "Lengths as of SAGE-Bench's dialogues (words and signs of messages and tools; of the selection queries where there are no dialogues), a quarter of them: attention then has a share nearer to a large model's."
    from sage_repro.bench.sagebench import load_sagebench, load_talks
    from sage_repro.bench.dialogues import to_rows
    try: texts = [json.dumps(r) for r in to_rows(load_talks())]
    except (FileNotFoundError, ValueError): texts = [s.query*4 for s in load_sagebench()["train"]]
    return np.maximum(4, rng.permutation([len(re.findall(r"\w+|[^\w\s]", t)) for t in texts])[:n]//4)

def rows(size, rng, taught:float=1.)->list[dict]:
    "Random tokens; the last `taught` of each row is supervised."
    out = []
    for t in size: x = rng.integers(1, VOCAB, t).tolist(); k = int(t*(1 - taught)); out.append({"input_ids": x, "labels": [-100]*k + x[k:]})
    return out

def collate(some:list[dict])->dict:
    t = max(len(r["input_ids"]) for r in some); pad = lambda v, k: torch.tensor([r[k] + [v]*(t - len(r[k])) for r in some])
    return {"input_ids": pad(0, "input_ids"), "labels": pad(-100, "labels"), "attention_mask": torch.tensor([[1]*len(r["input_ids"]) + [0]*(t - len(r["input_ids"])) for r in some])}

def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, pad_token_id=0))

class Stamps:
    "Batches; CPU seconds between the step after which the clock starts and the last."
    def __init__(self, batches, warm:int=WARM): self.batches, self.warm = batches, warm
    def __len__(self): return len(self.batches)
    def __iter__(self):
        for i, b in enumerate(self.batches):
            if i == self.warm: self.start = time.process_time()
            yield b
        self.seconds = time.process_time() - self.start

def lean(data, batches, warm:int=WARM)->float: s = Stamps(batches, warm); train_rows(tiny(), data, s, collate, lr=1e-3); return s.seconds

def with_trainer(base, data, parts:dict|None=None, **more)->float:
    "Seconds of `STEPS` steps of a trainer, or of the add-on made of it, samples in the data set's order."
    from transformers import TrainerCallback
    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == WARM: self.start = time.process_time()
            if state.global_step == WARM + STEPS: self.seconds = time.process_time() - self.start
    cls = base if parts is None else importance_trainer(base, **parts); clock = Clock()
    with tempfile.TemporaryDirectory() as d:
        t = cls(tiny(), arguments(base, d, more.pop("loss_type", None)), train_dataset=data, data_collator=collate, **more); t.add_callback(clock); t.train()
    return clock.seconds

def arguments(base, folder:str, loss_type:str|None):
    "Plain fine-tuning, the same for both kinds, nothing logged or saved; TRL without gradient checkpointing and bf16, which cost time on a CPU."
    from transformers import TrainingArguments
    same = dict(output_dir=folder, per_device_train_batch_size=BATCH, max_steps=WARM + STEPS, learning_rate=1e-3, report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="no", use_cpu=True, train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False)
    if loss_type is None: return TrainingArguments(**same)
    from trl import SFTConfig
    return SFTConfig(**same, loss_type=loss_type, max_length=None)

def tokenizer():
    "TRL asks for one though the rows are tokens already."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0, "[EOS]": 1}, unk_token="[EOS]")), pad_token="[PAD]", eos_token="[EOS]")

# ---- pairs: (pairs,) seconds of ours over seconds of theirs, which goes first changing

def paired(ours, theirs, pairs:int)->list[float]:
    out = []
    for i in range(pairs): x, y = (lambda a, b: (a, b))(*((ours(i), theirs(i)) if i % 2 else (theirs(i), ours(i))[::-1])); out.append(x/y)
    return out

def bucketing(pairs:int)->list[float]:
    "The same samples, so the same real tokens: buckets against random batches of 16."
    rng = np.random.default_rng(0); size = lengths(320, rng); data = rows(size, rng)
    cut = lambda i, mega: list(LengthBuckets(size, 16, np.random.default_rng(i), mega=mega))
    run = lambda i, mega: lean(data, cut(i, mega), 0)
    return paired(lambda i: run(i, 50), lambda i: run(i, 1), pairs)

def a_step(pairs:int, **parts)->list[float]:
    from transformers import Trainer
    rng = np.random.default_rng(0); data = rows(lengths(BATCH*(WARM + STEPS), rng), rng)
    return paired(lambda i: with_trainer(Trainer, data, parts), lambda i: with_trainer(Trainer, data), pairs)

def against_trl(pairs:int, loss_type:str, taught:float, parts:dict|None=None)->list[float]:
    "The same batches of the same tokens, through the lean loop (or the add-on), and through TRL."
    from datasets import Dataset
    SFT, rng = sft_trainer(), np.random.default_rng(0); data = Dataset.from_list(rows(lengths(BATCH*(WARM + STEPS), rng), rng, taught)); plain = data.to_list()
    trl = lambda i, p=None: with_trainer(SFT, data, p, loss_type=loss_type, processing_class=tokenizer())
    mine = (lambda i: lean(plain, BatchSampler(range(len(plain)), BATCH, False))) if parts is None else (lambda i: trl(i, parts))
    return paired(mine, trl, pairs)

IDLE = lambda: dict(gate=AdmitAll(), scorer=SSIS(gamma=0), buffer=ReservoirBuffer(64, np.random.default_rng(0)), replay_ratio=0.)
# id, pairs of seconds, most that our seconds may be of theirs
CASES = [("addon.length_buckets.random_padding", lambda n: bucketing(n), 1/1.5),
         ("addon.admit_all.trainer", lambda n: a_step(n, gate=AdmitAll()), 1.05),
         ("addon.admit_all_scored_and_remembered.trainer", lambda n: a_step(n, **IDLE()), 1.05),
         ("stream.train_rows.trl_chunked", lambda n: against_trl(n, "chunked_nll", 1.), .91),
         ("stream.train_rows.trl_nll", lambda n: against_trl(n, "nll", 1.), .91),
         ("stream.train_rows.trl_chunked.third_supervised", lambda n: against_trl(n, "chunked_nll", .33), .91),
         ("addon.admit_all_scored_and_remembered.trl_chunked", lambda n: against_trl(n, "chunked_nll", 1., IDLE()), 1.05)]

def addon_ratios(
    pairs:int=5, # paired runs for each ratio
    only:str="", # run the cases whose id contains it
)->list[dict]: # id, ratio (median), low and high (10th and 90th percentile of the pairs), limit, status: ok, miss, or "not run: reason"
    "Seconds of ours over theirs for the same real tokens."
    from transformers.utils import logging; logging.set_verbosity_error(); torch.set_num_threads(1); out = []
    for name, case, limit in CASES:
        if only not in name: continue
        row = {"id": name, "ratio": None, "low": None, "high": None, "limit": round(limit, 3)}
        try: low, mid, high = np.quantile(case(pairs), [.1, .5, .9]).round(3).tolist(); row |= {"ratio": mid, "low": low, "high": high, "status": "ok" if mid <= limit else "miss"}
        except ImportError as e: row["status"] = f"not run: {e}"
        out.append(row)
    return out

if __name__ == "__main__":
    for name, _, _ in CASES:
        if not sys.argv[1:] or sys.argv[1] in name:
            for row in addon_ratios(*map(int, sys.argv[2:3]), only=name):
                if row["id"] == name: print(json.dumps(row), flush=True)
