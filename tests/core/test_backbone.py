"""What the UNet is told of a batch."""

import torch

from magicapture.backbone import Conditioning


def test_rows_of_a_conditioning():
    whole = Conditioning(
        torch.arange(6.0).reshape(3, 1, 2),
        {"pooled": torch.arange(3.0)[:, None]},
        positions=[{"ada": [1]}, {}, {"ada": [2, 3]}],
    )
    rows = whole[1:]
    assert len(whole) == 3 and len(rows) == 2
    assert torch.equal(rows.context, whole.context[1:])
    assert torch.equal(rows.extra["pooled"], torch.tensor([[1.0], [2.0]]))
    assert rows.positions == [{}, {"ada": [2, 3]}]
