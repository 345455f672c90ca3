"""A transformer with Hugging Face's Trainer; IMM marks what the term adds."""

import tempfile

import torch
import transformers

import imm_lib as imm  # IMM
from imm_lib.experiments import language as lm
from imm_lib.integrations.transformers import IMMTrainer  # IMM

V = 40
text, side, held_out = (
    lm.topics(n, s) for s, n in enumerate((3000, 30000, 3000))
)


def blocks(words):
    return [{"input_ids": part, "labels": part} for part in words.split(25)]


torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=32,
    bos_token_id=0,
    eos_token_id=0,
)
arguments = transformers.TrainingArguments(
    tempfile.mkdtemp(),
    num_train_epochs=8,
    per_device_train_batch_size=4,
    learning_rate=3e-3,
    save_strategy="epoch",
    save_total_limit=1,
    report_to=[],
    dataloader_pin_memory=torch.accelerator.is_available(),
    disable_tqdm=True,
)
bigram = imm.KneserNeyBigram.fit(side, V)  # IMM
term = imm.MovingAverageIMM(bigram, num_short=V, num_labels=V)  # IMM
trainer = IMMTrainer(  # IMM, for transformers.Trainer(
    transformers.LlamaForCausalLM(config),
    arguments,
    train_dataset=blocks(text),
    eval_dataset=blocks(held_out),
    term=term,  # IMM
)
trainer.train()
print(f"held-out loss: {trainer.evaluate()['eval_loss']:.3f} nats")
