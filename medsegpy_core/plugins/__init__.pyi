from medsegpy_core.plugins.hookspecs import (
    hookimpl as hookimpl,
)
from medsegpy_core.plugins.manager import (
    PluginManager as PluginManager,
)
from medsegpy_core.plugins.manager import (
    default_manager as default_manager,
)
from medsegpy_core.plugins.specs import (
    Augmentation as Augmentation,
)
from medsegpy_core.plugins.specs import (
    DatasetSpec as DatasetSpec,
)
from medsegpy_core.plugins.specs import (
    Evaluator as Evaluator,
)
from medsegpy_core.plugins.specs import (
    EvaluatorSpec as EvaluatorSpec,
)
from medsegpy_core.plugins.specs import (
    LoaderOptions as LoaderOptions,
)
from medsegpy_core.plugins.specs import (
    LoaderRequest as LoaderRequest,
)
from medsegpy_core.plugins.specs import (
    LoaderSpec as LoaderSpec,
)
from medsegpy_core.plugins.specs import (
    MetricSpec as MetricSpec,
)
from medsegpy_core.plugins.specs import (
    TransformSpec as TransformSpec,
)
