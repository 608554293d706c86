"""Trains a classifier of images in MNIST's size for 10 seconds: python docs/examples/time_budget_mnist.py."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bytelm.callbacks import Cosine, Schedules, TimeBudget


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


digits = torch.randint(10, (4096,))
images = torch.randn(10, 28, 28)[digits] + torch.randn(4096, 28, 28)  # ten pictures, with noise
trainer = pl.Trainer(max_epochs=-1, callbacks=[TimeBudget("10s"), Schedules({"lr": Cosine()})])
trainer.fit(model := Classifier(), DataLoader(TensorDataset(images, digits), batch_size=64, shuffle=True))
print(f"accuracy: {(model.net(images).argmax(-1) == digits).float().mean():.3f}")
