import torch

from training.learning.mixing import mixed


def batch(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are all 0 or all 1, half each; a pixel's mean is the share of the second class."""
    labels = torch.arange(count) % 2
    return labels.view(-1, 1, 1, 1).float().expand(-1, 3, 16, 12).clone(), torch.eye(2)[labels]


def test_mixup_targets_are_the_shares_of_the_pixels() -> None:
    torch.manual_seed(0)
    images, targets = mixed(*batch(), mixup=1.0, cutmix=0)
    assert torch.allclose(targets.sum(1), torch.ones(64))
    assert torch.allclose(images.amax((1, 2, 3)), images.amin((1, 2, 3))), "every pixel is mixed alike"
    assert torch.allclose(images.mean((1, 2, 3)), targets[:, 1], atol=1e-6)
    assert 0.1 < ((targets > 0.1) & (targets < 0.9)).float().mean() < 1


def test_rows_are_mixed_as_images_are() -> None:
    images, own = batch()
    torch.manual_seed(0)
    expected, shares = mixed(images, own, mixup=1.0, cutmix=0)
    torch.manual_seed(0)
    rows, same = mixed(images.flatten(1), own, mixup=1.0, cutmix=0)
    assert torch.equal(rows, expected.flatten(1))
    assert torch.equal(same, shares)


def test_a_small_alpha_leaves_most_images_nearly_as_they_are() -> None:
    torch.manual_seed(0)
    images, own = batch(2000)
    shares = {alpha: (mixed(images, own, alpha, 0)[1] * own).sum(1) for alpha in (0.05, 2.0)}
    far = {alpha: ((share > 0.05) & (share < 0.95)).float().mean() for alpha, share in shares.items()}
    assert far[0.05] < 0.15 < 0.4 < far[2.0]


def test_cutmix_pastes_a_rectangle_and_its_area_is_the_partners_share() -> None:
    torch.manual_seed(0)
    before, own = batch()
    images, targets = mixed(before, own, mixup=0, cutmix=1.0)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(images.mean((1, 2, 3)), targets[:, 1], atol=1e-6)
    pasted = (images != before)[:, 0]
    assert pasted.any()
    for mask in pasted[pasted.flatten(1).any(1)]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None]), "a rectangle"


def test_with_both_a_batch_is_mixed_by_either() -> None:
    torch.manual_seed(0)
    cut = [set(mixed(*batch(), 1.0, 1.0)[0].unique().tolist()) == {0.0, 1.0} for _ in range(40)]
    assert 8 < sum(cut) < 32


def test_soft_targets_are_mixed_too() -> None:
    torch.manual_seed(0)
    images, _ = batch()
    soft = torch.rand(64, 5).softmax(1)
    _, targets = mixed(images, soft, 1.0, 0)
    assert torch.allclose(targets.sum(1), torch.ones(64))
    assert targets.std() < soft.std()
