"""Old import paths: every public name from before version 0.2 is still found where it was."""

import importlib
import re
import subprocess
import sys
import textwrap

import pytest

from mtanytime._moved import MOVED, RENAMED, _OldModule

# The public names of the modules of version 0.1, except those without an equal now: training.require and
# transfer_recipes.listed, internal checks; transfer.bilevel.sgd_rules and sgd_velocity, which became SGDState.read; the
# type aliases Maps and Matrix of transfer.matching.
OLD_NAMES = """
mtanytime: AnytimePredictor AnytimeTrainer Normalized SlicedResNeXt Trainer TransferTrainer anytime backbones datasets
    evaluate features image_layers load_l2t_resnet32 measure resnet tap training transfer vgg9
mtanytime.anytime: AnytimeNetwork AnytimePredictor AnytimeResult AnytimeTrainer CoarseToFineLoss InclusiveResNeXt
    JointLoss MSDNet ResNeXt SlicedResNeXt Taxonomy choose_thresholds coarse_to_fine_metrics evaluate_exits
    exits_taken fold_batch_norms resnext
mtanytime.anytime.inclusive: InclusiveResNeXt
mtanytime.anytime.inference: Answer AnytimePredictor Unit choose_thresholds exits_taken fold_batch_norms
mtanytime.anytime.msdnet: HEAD_WIDTH Initialization MSDNet Maps StepMode
mtanytime.anytime.network: AnytimeNetwork
mtanytime.anytime.resnext: Block ResNeXt STRIDES Stem Trunk check_images check_sizes initialize make_stem resnext
    widen
mtanytime.anytime.sliced: SlicedResNeXt TriangularConv
mtanytime.anytime.taxonomy: CoarseToFineLoss Taxonomy coarse_to_fine_metrics
mtanytime.anytime.trainer: AnytimeResult AnytimeTrainer JointLoss evaluate_exits
mtanytime.anytime_recipes: CIFAR10 CIFAR_MEAN CIFAR_STD MODELS VALIDATION_A_CLASS cifar10 rows
mtanytime.authors_code: authors_iteration authors_joint_step
mtanytime.backbones: IMAGENET_MEAN IMAGENET_STD Normalized ResNet VGG l2t_resnet32_names load_l2t_resnet32 resnet vgg9
mtanytime.benchmarks: PARTS TRANSFER_MODES WARM_UP bench_anytime bench_transfer first_order_error peak_mebibytes
    processor transfer_iteration
mtanytime.characters: ARCS CELL CHUNK CONTRAST FRAGMENTS INK LUMA draw handwritten printed
mtanytime.datasets: Augment Batches CIFAR100_TREE CIFAR10_TREE DIGITS_A_CLASS DIGIT_TREE ImageSet LETTER_TREE
    STL10_TREE Task Tree cifar10 cifar100 cifar10_jpeg crop_flip derive_seed digits image_folder l2t_split leaves
    letters stl10
mtanytime.double_backward: check_double_backward
mtanytime.explore.budget: BudgetExplorer
mtanytime.explore.contents: ALL Contents IMAGES_UP_TO PIXELS_UP_TO STEPS_UP_TO VALUES_UP_TO budget_contents
    check_images data_uri first_choices networks pixels refuse_doubles slices summary transfer_contents wide
mtanytime.explore.draw: BATCH_ACCURACY COSTS LEAST_RATIO LEGEND_UP_TO LETTER LETTERS_UP_TO LINES_UP_TO MAPS_A_ROW
    MARKERS NAMES_UP_TO NOISY_FROM NUMBERS_UP_TO Picture Step TEXT_COLUMNS Table accuracy_by_budget accuracy_by_method
    accuracy_by_seconds answers_by_time channel_weights curve_at_level distinct_colours heatmap heatmaps
    learning_curves levels_of read_curve read_table read_trace shortened some weights_over_time worded
mtanytime.explore.export: BYTES_UP_TO FRONT KINDS PAGE SCRIPT SCRIPTS STYLE export_csv kind_of save
mtanytime.explore.live: LINES_UP_TO LiveTraining POINTS_UP_TO RESUMES SECONDS_BETWEEN add_rows
mtanytime.explore.playground: Answerer AnytimePlayground CLASSES_UP_TO Run
mtanytime.explore.transfer: TransferExplorer
mtanytime.explore.widget: Explorer one_of
mtanytime.features: Tapped hooked image_layers tap unwrapped
mtanytime.measure: Shape area_under_curve calibration curve exit_costs flips gap interpolated latencies latency macs
    parameters predictions savings synchronize
mtanytime.quick_layers: Channels Images Kernels Maps for_parameters quick_layers refuse_a_third_derivative
mtanytime.randomness: get_rng_state seeded set_rng_state
mtanytime.recipes: RECIPES Recipe Results changed plan recipe run
mtanytime.runs: Row RunFolder fingerprint
mtanytime.stateless: call_at tensor_names undisturbed
mtanytime.training: Precision SCHEDULES STEP_BY_STEP Schedule StepReport Trainer TrainerOptions TrainingResult
    autocast batch_accuracy best_device evaluate name_of share_right
mtanytime.transfer: AnotherBatch FeatureMatching InnerStep MetaNetworks PairWeights SGDRule Student TransferResult
    TransferTrainer meta_gradient
mtanytime.transfer.bilevel: InnerStep Loss MetaGradient Mode SGDRule Tensors meta_gradient
mtanytime.transfer.matching: FeatureMatching
mtanytime.transfer.metanets: MetaNetworks Pair PairWeights Where WhereStart
mtanytime.transfer.outer: AnotherBatch
mtanytime.transfer.trainer: Forward Layers OuterObjective Student TransferResult TransferTrainer
mtanytime.transfer_recipes: BUILT_IN METHODS Parts Setting Settings built_in check_files check_scored_on cifar10_few
    rows run_folder whole_cifar10
"""


def old_names() -> dict[str, list[str]]:
    """Old module -> its public names."""
    modules: dict[str, list[str]] = {}
    for word in OLD_NAMES.split():
        if word.endswith(":"):
            modules[word[:-1]] = names = []
        else:
            names.append(word)
    return modules


def current_modules() -> list[object]:
    """All modules of the library that are loaded and exist as files."""
    loaded = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "mtanytime"]
    return [module for module in loaded if not isinstance(module, _OldModule)]


@pytest.mark.parametrize("module", old_names())
def test_old_names_are_the_current_objects(module: str) -> None:
    """Code written for the old layout must go on, and a class must be one class, whichever path it came by."""
    imported = importlib.import_module(module)
    for name in old_names()[module]:
        old = f"{module}.{name}".removeprefix("mtanytime.")
        if old in RENAMED:
            message = f"mtanytime.{old} is now mtanytime.{RENAMED[old]};"
            with pytest.warns(DeprecationWarning, match=re.escape(message)):
                value = getattr(imported, name)
        else:
            value = getattr(imported, name)  # in tests, a warning would be an error
        current = RENAMED.get(old, old).rpartition(".")[2]
        assert any(vars(home).get(current) is value for home in current_modules()), f"{old} is not a current object"


def test_the_known_renames_are_listed() -> None:
    """The test above takes the renames from the table, so the table must not be empty or hold other things."""
    expected = {"call_at": "functional_call", "undisturbed": "trial_run", "share_right": "fraction_correct"}
    expected |= {"AnotherBatch": "FreshBatch", "quick_layers": "second_order"}
    pairs = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED.items()}
    assert expected.items() <= pairs.items()
    for old in RENAMED:
        assert old.rpartition(".")[2] in old_names()[f"mtanytime.{old.rpartition('.')[0]}"]


@pytest.mark.parametrize("module", MOVED)
def test_unknown_names_are_errors(module: str) -> None:
    """A misspelt name must fail as in any module."""
    old = importlib.import_module(f"mtanytime.{module}")
    with pytest.raises(AttributeError, match=f"module 'mtanytime.{module}' has no attribute 'nonsense'"):
        old.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec(f"from mtanytime.{module} import nonsense")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mtanytime\.nonsense'"):
        importlib.import_module("mtanytime.nonsense")


def test_every_form_of_import_works_and_nothing_is_loaded_early() -> None:
    """In a fresh process: what is not asked for must not be imported, and each way to write an import must work."""
    code = """
        import sys, warnings
        import mtanytime as mt
        early = [name for name in sys.modules if name.startswith(("mtanytime.experiments", "mtanytime.explore"))]
        assert not early, early
        assert not any(f"mtanytime.{old}" in sys.modules for old in ("datasets", "recipes", "stateless"))
        assert mt.datasets.digits is mt.data.digits
        from mtanytime import datasets
        from mtanytime.datasets import letters
        assert (datasets, letters) == (mt.datasets, mt.data.letters)
        import mtanytime.recipes
        assert mtanytime.recipes.run is sys.modules["mtanytime.experiments.runner"].run
        from mtanytime.transfer import metanets
        assert metanets.MetaNetworks is mt.transfer.MetaNetworks
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from mtanytime.stateless import call_at
        assert {(warning.category, warning.filename) for warning in caught} == {(DeprecationWarning, "<string>")}
        assert "mtanytime.functional.functional_call" in str(caught[0].message)
        assert call_at is sys.modules["mtanytime.functional"].functional_call
        print("done")
    """
    code = textwrap.dedent(code)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (finished.stdout, finished.stderr) == ("done\n", "")
