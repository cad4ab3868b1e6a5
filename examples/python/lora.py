"""Fine-tunes a Llama with LoRA under Aliquot: adapters from PEFT train, the base is frozen.

    torchrun --standalone --nproc-per-node 2 examples/python/lora.py      # two ranks, stage 3
    python examples/python/lora.py --stage 0                              # one process, nothing sharded

The Llama is a tiny one from Transformers' configuration. It learns bytes of Python's standard library first, and then,
by its adapters alone, the English of Python's language reference, which comes with Python for its `help()`. A frozen
parameter is sharded, and has neither gradient nor optimizer state. Needs `pip install "aliquot[demo]"`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import aliquot
import torch
from adapter_plot import Phase, draw
from byte_lm import VOCABULARY, next_byte_loss
from byte_text import Windows, language_reference, read_bytes, split, standard_library
from closing import memory_table
from display import Report, open_display
from options import options
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.markup import escape
from schedule import warmup_then_cosine
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 96
PROMPT = b"The "


@dataclass
class Texts:
    """Batches of each text: this rank's own to train on, and the same on every rank to measure with."""

    training: dict[str, Windows]
    held_out: dict[str, list[tuple[Tensor, Tensor]]]


def parse_arguments() -> argparse.Namespace:
    parser = options(__doc__ or "", steps=200, lr=5e-3, plot="lora.png")
    parser.set_defaults(batch=8)
    parser.add_argument("--adapt-steps", type=int, default=150, help="steps of fine-tuning, after --steps of the base")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters' matrices")
    return parser.parse_args()


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # bytes are all there is
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **sizes, **special))


def read(args: argparse.Namespace, world: aliquot.World) -> Texts:
    texts = Texts({}, {})
    library = read_bytes(standard_library(), 8 << 20)
    for name, text in (("standard library", library), ("language reference", language_reference())):
        training, held_out = split(text.to(world.device))
        texts.training[name] = Windows(training, args.batch, CONTEXT, seed=args.seed * 10_007 + world.rank)
        windows = Windows(held_out, 16, CONTEXT, seed=0)
        texts.held_out[name] = [windows.draw() for _ in range(2)]
    return texts


@torch.no_grad()
def held_out_losses(model: nn.Module, texts: Texts) -> dict[str, float]:
    """Every rank runs the same batches, so every rank has the whole answer."""
    return {
        name: sum(float(next_byte_loss(model(inputs).logits, targets)) for inputs, targets in batches) / len(batches)
        for name, batches in texts.held_out.items()
    }


def train(model: nn.Module, name: str, steps: int, lr: float, texts: Texts, console: Console) -> Phase:
    """Trains what is not frozen on the text of that name."""
    optimizer = aliquot.AdamW(model, lr=lr, betas=(0.9, 0.95), max_grad_norm=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(20, steps))
    phase = Phase(name, [], {0: held_out_losses(model, texts)}, {})
    with open_display(console, steps) as display:
        for step in range(1, steps + 1):
            inputs, targets = texts.training[name].draw()
            loss = next_byte_loss(model(inputs).logits, targets)
            loss.backward()
            optimizer.step()
            phase.bytes = aliquot.stats(model).bytes  # while the gradients are there
            optimizer.zero_grad()
            scheduler.step()

            phase.losses.append(loss.item())
            if step % 25 == 0 or step == steps:
                phase.held_out[step] = held_out_losses(model, texts)
            figures = {text: f"{value:.3f}" for text, value in [*phase.held_out.values()][-1].items()}
            display.show(Report(step, phase.losses[-1], figures, phase.bytes))
    return phase


def with_adapters(base: nn.Module, rank: int) -> nn.Module:
    """A frozen copy of the trained base, with adapters beside every linear layer but the head."""
    copy = llama()
    copy.load_state_dict(aliquot.full_state_dict(base, all_ranks=True))
    return get_peft_model(copy, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def sample(model: nn.Module, device: torch.device, seed: int) -> str:
    """What the model writes after PROMPT, with all parameters gathered once and not for each byte."""
    torch.manual_seed(seed)
    tokens = torch.tensor([list(PROMPT)], device=device)
    with aliquot.gathered(model):
        written = model.generate(input_ids=tokens, max_new_tokens=160, do_sample=True, temperature=0.7)
    text = bytes(written[0].tolist()).decode("utf-8", "replace")
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))


def main() -> None:
    args = parse_arguments()
    world = aliquot.init(transport=args.transport)
    console = Console(quiet=world.rank != 0)
    texts = read(args, world)
    torch.manual_seed(args.seed)

    base = aliquot.shard(llama(), stage=args.stage)
    console.rule("all parameters learn the standard library")
    pretraining = train(base, "standard library", args.steps, args.lr, texts, console)
    samples = {"before": sample(base, world.device, args.seed)}

    adapted = with_adapters(base, args.rank)
    trained, parameters = adapted.get_nb_trainable_parameters()
    console.rule(f"adapters learn the language reference: {trained:,} of {parameters:,} parameters")
    adapted = aliquot.shard(adapted, stage=args.stage)
    adaptation = train(adapted, "language reference", args.adapt_steps, args.lr, texts, console)
    samples["after"] = sample(adapted, world.device, args.seed)

    for when, text in samples.items():
        console.rule(f"what the model writes {when} fine-tuning")
        console.print(text, highlight=False)
    console.print(memory_table(adaptation.bytes, parameters, world.world_size))
    before, after = (adaptation.held_out[step]["language reference"] for step in (0, args.adapt_steps))
    console.print(f"language reference, held out: loss {before:.3f} before and {after:.3f} after", soft_wrap=True)
    if world.rank == 0:
        draw(args.plot, pretraining, adaptation)
    console.print(f"plot: {args.plot}", soft_wrap=True)


if __name__ == "__main__":
    main()
