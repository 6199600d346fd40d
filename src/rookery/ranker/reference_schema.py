"""The heavy-ranker configuration of twitter/the-algorithm-ml, as its files may be written; its model is apart."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.reference_training import ReferenceTraining
from rookery.config.suggest import did_you_mean
from rookery.config.translation import unused
from rookery.data.files_config import ExplicitDateInputs, ExplicitDatetimeInputs
from rookery.optim.config import LearningRateConfig
from rookery.ranker.reference_model_schema import ReferenceModel

PositiveInt = Annotated[int, Field(gt=0)]


class ReferenceSegDenseSchema(StrictModel):
    """Which features of the records are read, and what they are called."""

    schema_path: str
    features: tuple[str, ...] = ()
    renamed_features: dict[str, str] = Field(default_factory=dict)
    mask_mantissa_features: dict[str, int] = Field(default_factory=dict)


class ReferenceTaskData(StrictModel):
    """How the log of a task was sampled."""

    pos_downsampling_rate: float = 1.0
    neg_downsampling_rate: float = 1.0


class ReferenceTruncateAndSlice(StrictModel):
    continuous_feature_truncation: PositiveInt | None = None
    binary_feature_truncation: PositiveInt | None = None
    continuous_feature_mask_path: str | None = None
    binary_feature_mask_path: str | None = None


class ReferenceDowncast(StrictModel):
    features: dict[str, Literal["bfloat16", "bool", "float32", "float16", "uint8"]] = Field(default_factory=dict)


class ReferenceRectifyLabels(StrictModel):
    label_rectification_window_in_hours: float = Field(default=3.0, gt=0)
    served_timestamp_field: str
    impressed_timestamp_field: str
    label_to_engaged_timestamp_field: dict[str, str]


class ReferenceExtraction(StrictModel):
    name: str
    source_tensor: str
    index: int = Field(ge=0)


class ReferenceExtractFeatures(StrictModel):
    extract_feature_table: tuple[ReferenceExtraction, ...] = ()


class ReferenceDownsampleNegatives(StrictModel):
    batch_multiplier: PositiveInt
    engagements_list: tuple[str, ...] = ()
    num_engagements: int | None = unused("the tasks are counted here")


class ReferencePreprocess(StrictModel):
    truncate_and_slice: ReferenceTruncateAndSlice | None = None
    downcast: ReferenceDowncast | None = None
    rectify_labels: ReferenceRectifyLabels | None = None
    extract_features: ReferenceExtractFeatures | None = None
    downsample_negatives: ReferenceDownsampleNegatives | None = None


_THREADS = "how many files and batches are read ahead follows from memory and processors here"
_FILES = "every file is read once an epoch here, in an order of its own each time"


class ReferenceData(StrictModel):
    """The rows of training, or of a partition of validation."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("inputs", "explicit_date_inputs", "explicit_datetime_inputs"), required=True),
    )

    inputs: str | None = None
    explicit_date_inputs: ExplicitDateInputs | None = None
    explicit_datetime_inputs: ExplicitDatetimeInputs | None = None
    global_batch_size: PositiveInt
    num_files_to_keep: PositiveInt | None = None
    ignore_data_errors: bool = False
    examples_shuffle_buffer_size: PositiveInt | None = None
    seg_dense_schema: ReferenceSegDenseSchema
    tasks: dict[str, ReferenceTaskData] = Field(min_length=1)
    evaluation_tasks: tuple[str, ...] = ()
    preprocess: ReferencePreprocess | None = None

    repeat_files: bool = unused(_FILES, default=True)
    file_batch_size: int | None = unused(_FILES)
    cache: bool = unused("rows are read again each epoch here; the system keeps files in memory", default=False)
    data_service_dispatcher: str | None = unused(
        "tf.data's service is not spoken here; `rookery reader` reads for the trainers that name it in parallel.readers"
    )
    dataset_service_compression: str | None = unused("what readers send is not compressed")
    map_num_parallel_calls: int | None = unused(_THREADS)
    interleave_num_parallel_calls: int | None = unused(_THREADS)
    sampler: dict[str, Any] | None = unused("deprecated there; select rows with `rows`, or when the log is written")

    @model_validator(mode="after")
    def _measures_its_own_tasks(self) -> ReferenceData:
        for task in self.evaluation_tasks:
            if task not in self.tasks:
                raise ValueError(f"evaluation_tasks: {task!r} is not in tasks; {did_you_mean(task, list(self.tasks))}")
        return self


class ReferenceAdam(StrictModel):
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7


class ReferenceMultiTaskLearningRates(StrictModel):
    tower_learning_rates: dict[str, LearningRateConfig]
    backbone_learning_rate: LearningRateConfig | None = None


class ReferenceOptimizer(StrictModel):
    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("single_task_learning_rate", "multi_task_learning_rates"), required=True),
    )

    adam: ReferenceAdam
    single_task_learning_rate: LearningRateConfig | None = None
    multi_task_learning_rates: ReferenceMultiTaskLearningRates | None = None


class ReferenceRankerTraining(ReferenceTraining):
    num_train_steps: int = Field(default=1_000_000, gt=0)


class ReferenceRankerConfig(StrictModel):
    """The whole file."""

    training: ReferenceRankerTraining = ReferenceRankerTraining()
    model: ReferenceModel
    train_data: ReferenceData
    validation_data: dict[str, ReferenceData] = Field(default_factory=dict)
    optimizer: ReferenceOptimizer
    which_metrics: str | None = unused("every metric is measured; evaluation.tasks chooses the tasks")
