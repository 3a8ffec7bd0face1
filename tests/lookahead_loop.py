"""A training loop of one's own with `Lookahead`; test_lookahead.py compares it with the trainer."""

import torch

import mtanytime as mt
from mtanytime.transfer import FeatureMatching, Lookahead, MetaNetworks, Student


def train(source, target, batches, pairs, beta=0.5, lr=0.1, meta_lr=1e-4):
    """Train a target network with L2T-ww; `pairs` are (source layer, target layer)."""
    images = batches[0][0]
    channels = [{k: shape[0] for k, shape in mt.image_layers(net, images).items()} for net in (source, target)]
    source_layers, target_layers = (list(dict.fromkeys(layers)) for layers in zip(*pairs, strict=True))
    source = mt.tap(source.eval(), source_layers)
    student = Student(mt.tap(target.train(), target_layers), FeatureMatching(pairs, *channels).to(images))
    meta = MetaNetworks(pairs, channels[0]).to(images)
    optimizer = torch.optim.SGD(student.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    meta_optimizer = torch.optim.Adam(meta.parameters(), meta_lr, weight_decay=1e-4)
    lookahead = Lookahead(student, optimizer, beta=beta, inner_steps=2)
    for images, labels in batches:
        with torch.no_grad():
            _, source_features = source(images)
        losses = lookahead.losses(images, labels, source_features, meta(source_features))
        lookahead.step(losses)  # θ: the target and the regressors
        meta_optimizer.zero_grad()
        lookahead.backward(losses)  # the gradient of φ, through the steps ahead
        meta_optimizer.step()
    return student, meta
