"""Train opt-mini, the small OPT of this folder, on Python's documentation: python models/opt-mini/train.py"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from shadow.opt_mini.card import Figures, card
from shadow.opt_mini.corpus import documents, pack
from shadow.opt_mini.ngrams import bigram_loss, unigram_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from shadow.jobs.memory import keep_memory

HERE = Path(__file__).parent
SEED = 0
VOCABULARY = 3840
HIDDEN, LAYERS, HEADS, NEURONS, POSITIONS = 192, 6, 6, 768, 256
EPOCHS, BATCH, LR, WEIGHT_DECAY, DROPOUT = 10, 8, 2e-3, 0.1, 0.1
PAD, END = "<pad>", "</s>"  # as OPT's, a text begins with the token that ends one

log = logging.getLogger("opt-mini")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_memory()
    pl.seed_everything(SEED)
    train, held_out = documents("train"), documents("validation")
    tokenizer = train_tokenizer(train)
    module = LanguageModel(new_model(tokenizer))
    data = Sequences(train, held_out, tokenizer)
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/loss")
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            precision="bf16-mixed",
            gradient_clip_val=1.0,
            callbacks=[best],
            logger=CSVLogger("logs", "opt-mini"),
            log_every_n_steps=10,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
        )
        start = time.perf_counter()
        trainer.fit(module, data)
        seconds = time.perf_counter() - start
        checkpoint = torch.load(best.best_model_path, weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    module.model.half().save_pretrained(HERE)
    tokenizer.save_pretrained(HERE)
    found = measure(data, seconds, checkpoint["epoch"] + 1)
    (HERE / "README.md").write_text(card(found), encoding="utf-8")
    log.info("%s", found)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        model_max_length=POSITIONS,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            word_embed_proj_dim=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=NEURONS,
            max_position_embeddings=POSITIONS,
            dropout=DROPOUT,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Sequences(pl.LightningDataModule):
    """The training text is cut elsewhere in each epoch."""

    def __init__(
        self, train: Sequence[str], held_out: Sequence[str], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.texts, self.held_out_texts, self.tokenizer = train, held_out, tokenizer
        self.train = pack(train, tokenizer, POSITIONS)
        self.held_out = pack(held_out, tokenizer, POSITIONS)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        draw = torch.Generator().manual_seed(SEED + self.trainer.current_epoch)
        skip = int(torch.randint(POSITIONS, (), generator=draw))
        rows = pack(self.texts, self.tokenizer, POSITIONS, skip)
        return DataLoader(rows, BATCH, shuffle=True, generator=draw)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, BATCH)  # type: ignore[arg-type]


class LanguageModel(pl.LightningModule):
    def __init__(self, model: OPTForCausalLM) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = next_token_loss(self.model, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", next_token_loss(self.model, batch), prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        matrices = [weight for weight in self.parameters() if weight.dim() > 1]
        others = [weight for weight in self.parameters() if weight.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
        steps = int(self.trainer.estimated_stepping_batches) + EPOCHS  # some epochs have a batch more
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def next_token_loss(model: OPTForCausalLM, rows: Tensor) -> Tensor:
    """[B, T] of token ids -> nats a token, the first of each row being given."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def measure(data: Sequences, seconds: float, best_epoch: int) -> Figures:
    """Of the files as they were written, loaded as anybody will load them."""
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).eval()
    rows = data.held_out
    losses = [next_token_loss(model, part) for part in rows.split(1)]
    return Figures(
        config=model.config,
        parameters=model.num_parameters(),
        megabytes=(HERE / "model.safetensors").stat().st_size / 1e6,
        documents=len(data.texts),
        characters=sum(len(text) for text in data.texts),
        tokens=data.train.numel(),
        held_out_documents=len(data.held_out_texts),
        held_out_tokens=rows.numel(),
        seed=SEED,
        epochs=EPOCHS,
        best_epoch=best_epoch,
        seconds=seconds,
        threads=torch.get_num_threads(),
        loss=torch.stack(losses).mean().item(),
        bigram_loss=bigram_loss(data.train, rows, VOCABULARY),
        unigram_loss=unigram_loss(data.train, rows, VOCABULARY),
    )


if __name__ == "__main__":
    main()
