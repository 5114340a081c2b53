from support import ROOT

from benchmarks.quality import NEU_SPLIT
from training import recipe


def test_the_page_of_the_factory_names_the_settings_that_its_numbers_come_from() -> None:
    page = (ROOT / "docs/defects.md").read_text()
    assert all(f"--set {setting}" in page for setting in NEU_SPLIT)
    pictures, classes = 1800, 6
    for settings, said in ((NEU_SPLIT, "all 141 to 142"), ((), "105 a class")):
        chosen = recipe.load("defects", list(settings))
        train = pictures - round(chosen.split.test * pictures)
        held_out = min(chosen.split.validation, train // 10) + min(chosen.split.calibration, train // 5)
        assert said in page
        assert str((train - held_out) // classes) in said
