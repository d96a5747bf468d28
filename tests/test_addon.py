"The add-on as a user writes it: five lines around transformers.Trainer and TRL's SFTTrainer, on rows of messages and tools, resumed from a checkpoint."
from __future__ import annotations
import json
import numpy as np, pytest, torch
from sage_repro.bench.dialogues import FIND_TOOLS
from sage_repro.stream.coreset_stream import ClusterFill, Cover, NeighbourHoldout, ReducibleLoss, Stratified
from sage_repro.stream.importance import AdmitAll, QuantileGate, SSIS
from sage_repro.stream.replay import PrioritisedBuffer

TEMPLATE = """{% for t in tools or [] %}<tool> {{ t | tojson }} </s>{% endfor %}{% for m in messages %}<{{ m.role }}> {% if m.role == "assistant" %}{% generation %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"""

def talks(n:int=48)->list[dict]: # rows in the form of data/dialogues, the columns that training reads
    "Questions, a call, its answer, words; of different lengths."
    out, things = [], "rain stocks trains music pizza sleep".split()
    for i in range(n):
        w = things[i % 6]; tool = {"type": "function", "function": {"name": f"get_{w}", "description": f"tells about {w}", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": f"get_{w}", "arguments": {"n": i}}}]}
        out.append({"messages": [{"role": "user", "content": f"what of {w} " + "please "*(i % 5)}, call, {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"n": i})}, {"role": "assistant", "content": f"{w} is {i}"}], "tools": [tool, FIND_TOOLS]})
    return out

@pytest.fixture(scope="module")
def tokenizer():
    "Trained here, on these texts."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); t.decoder = decoders.ByteLevel()
    t.train_from_iterator([json.dumps(r) for r in talks()], trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE)

def tiny(tokenizer, seed:int=0):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attention_dropout=.1, max_position_embeddings=512, bos_token_id=1, eos_token_id=1, pad_token_id=0))

def tokenized(tokenizer)->list[dict]: # input_ids and labels, the assistant's turns supervised
    out = []
    for r in talks():
        e = tokenizer.apply_chat_template(r["messages"], tools=r["tools"], return_dict=True, return_assistant_tokens_mask=True)
        out.append({"input_ids": e["input_ids"], "labels": [x if a else -100 for x, a in zip(e["input_ids"], e["assistant_masks"])]})
    return out

COMMON = dict(per_device_train_batch_size=4, num_train_epochs=2, learning_rate=3e-3, report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True, seed=5, save_strategy="steps", save_steps=1)

def with_transformers(tokenizer, folder, wrap=lambda cls: cls, data=None):
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    return wrap(Trainer)(tiny(tokenizer), TrainingArguments(output_dir=str(folder), **COMMON), train_dataset=data or tokenized(tokenizer), data_collator=DataCollatorForSeq2Seq(tokenizer))

def with_trl(tokenizer, folder, wrap=lambda cls: cls, data=None, **more):
    pytest.importorskip("trl"); from datasets import Dataset; from trl import SFTConfig; from sage_repro.stream.addon import sft_trainer
    return wrap(sft_trainer())(tiny(tokenizer), SFTConfig(output_dir=str(folder), bf16=False, gradient_checkpointing=False, assistant_only_loss=True, **COMMON, **more), train_dataset=Dataset.from_list(data or talks()), processing_class=tokenizer)

def sage(cls):
    "The five lines."
    from sage_repro.stream.addon import importance_trainer
    return importance_trainer(cls, scorer=SSIS(gamma=0), gate=QuantileGate(.35), buffer=PrioritisedBuffer(16, np.random.default_rng(0)), replay_ratio=.5)

def admit_all(cls):
    from sage_repro.stream.addon import importance_trainer
    return importance_trainer(cls, gate=AdmitAll())

def same(a, b)->bool: return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))

MAKERS = pytest.mark.parametrize("make", [with_transformers, with_trl])

@MAKERS
def test_five_lines_train_on_the_budget_and_resume_bit_for_bit(make, tokenizer, tmp_path):
    from transformers import TrainerCallback
    whole = make(tokenizer, tmp_path/"whole", sage); before = {k: v.clone() for k, v in whole.model.state_dict().items()}; whole.train(); c, b = whole.batches.costs, whole.batches
    assert c.arrived <= 96 and c.scored == c.arrived and c.gradient_visits - c.replayed == 2*17 and c.replayed > 10 and b.visits.sum() == c.gradient_visits, "budget, scored once, replay"
    assert c.steps == whole.state.global_step == whole.state.max_steps == 10 and len(b.buffer) == 16 and set(b.buffer.columns) == {"index"}
    assert any(not torch.equal(before[k], v) for k, v in whole.model.state_dict().items()) and all(np.isfinite(list(c.seconds.values())))
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs): control.should_training_stop = state.global_step >= 7; return control
    cut = make(tokenizer, tmp_path/"cut", sage); cut.add_callback(Stop()); cut.train()
    for at in (3, 5, True): # inside the first epoch, between both, and the last one there is
        again = make(tokenizer, tmp_path/"cut", sage); again.train(resume_from_checkpoint=at if at is True else str(tmp_path/"cut"/f"checkpoint-{at}"))
        assert same(whole, again) and np.array_equal(b.visits, again.batches.visits) and np.array_equal(b.buffer.importance, again.batches.buffer.importance), at
        assert (again.batches.costs.scored, again.batches.costs.steps) == (c.scored, c.steps)

@MAKERS
def test_admitting_all_is_the_trainer_itself(make, tokenizer, tmp_path):
    plain = make(tokenizer, tmp_path/"a"); plain.train(); ours = make(tokenizer, tmp_path/"b", admit_all); ours.train() # in this order: a trainer seeds the generators when it is made
    assert same(plain, ours) and (ours.batches.visits == 2).all() and ours.batches.costs.scored == 0

def test_a_sample_that_teaches_nothing_is_named(tokenizer, tmp_path):
    data = tokenized(tokenizer); data[13]["labels"] = [-100]*len(data[13]["labels"])
    with pytest.raises(ValueError, match=r"-100 everywhere in sample \[13\] of the data set"): with_transformers(tokenizer, tmp_path, sage, data).train()

def test_trl_leaves_out_what_its_truncation_emptied(tokenizer, tmp_path):
    data = talks(); data[13]["messages"][0]["content"] = "very long "*400 # fills max_length: no assistant's turn is left
    assert len(with_trl(tokenizer, tmp_path, sage, data, max_length=400).train_dataset) == 47

def test_a_scorer_of_the_users_own_is_saved_by_its_attributes(tokenizer, tmp_path):
    from sage_repro.stream.addon import importance_trainer
    class Longest:
        needs = frozenset({"entropy"})
        def __init__(self): self.most = 0.
        def score(self, s): self.most = max(self.most, float(s.entropy.max())); return s.entropy/self.most
    wrap = lambda cls: importance_trainer(cls, scorer=Longest(), gate=QuantileGate(.5), buffer=PrioritisedBuffer(8, np.random.default_rng(1)))
    whole = with_transformers(tokenizer, tmp_path, wrap); whole.train()
    again = with_transformers(tokenizer, tmp_path, wrap); again.train(str(tmp_path/"checkpoint-4")); assert same(whole, again) and again.batches.scorer.most == whole.batches.scorer.most > 0

def test_what_cannot_work_is_said_before_training(tokenizer, tmp_path):
    from sage_repro.stream.addon import importance_trainer; from transformers import Trainer
    with pytest.raises(ValueError, match="SSIS\\(gamma=0\\)"): importance_trainer(Trainer, scorer=SSIS(), gate=QuantileGate(.35))
    with pytest.raises(ValueError, match="gate needs importances"): importance_trainer(Trainer, gate=QuantileGate(.35))
    for scorer, why in ((Cover(), "Cover that reads a stream's Batch"), (ClusterFill(np.random.default_rng(0)), "ClusterFill that reads"), (Stratified(np.random.default_rng(0)), "Stratified that reads"), (ReducibleLoss(NeighbourHoldout(np.random.default_rng(0))), "ReducibleLoss that needs \\['label'\\] too")):
        with pytest.raises(ValueError, match=why): importance_trainer(Trainer, scorer=scorer, gate=QuantileGate(.35))
    from transformers import TrainingArguments; args = TrainingArguments(output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to=[])
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(())
    with pytest.raises(ValueError, match="can be indexed, got Endless"): sage(Trainer)(tiny(tokenizer), args, train_dataset=Endless())
