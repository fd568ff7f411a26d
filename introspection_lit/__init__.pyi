from introspection_lit.cli import main as main
from introspection_lit.contexts.context import Context as Context
from introspection_lit.contexts.loading import load_contexts as load_contexts
from introspection_lit.detector import Detector as Detector
from introspection_lit.models.base_model import BaseModel as BaseModel
from introspection_lit.models.base_model import Lora as Lora
from introspection_lit.one_cache import Question as Question
from introspection_lit.one_cache import ask_one_cache as ask_one_cache
from introspection_lit.one_cache import concept_question as concept_question
from introspection_lit.steering.intervention import Intervention as Intervention
from introspection_lit.steering.intervention import steer as steer
from introspection_lit.steering.prefill import steered_cache as steered_cache
from introspection_lit.steering.question_pass import read_answers as read_answers
from introspection_lit.steering.specification import Steering as Steering
from introspection_lit.steering.vector_bank import VectorBank as VectorBank
from introspection_lit.steering.vector_files import read_directions as read_directions
from introspection_lit.steering.vector_files import write_direction as write_direction
from introspection_lit.training.datamodule import IntrospectionDataModule as IntrospectionDataModule
from introspection_lit.training.module import IntrospectionModule as IntrospectionModule

__version__: str
__all__: list[str]
