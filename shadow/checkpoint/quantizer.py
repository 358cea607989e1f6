"""What transformers asks for where quant_method is `shadow`. Light, for it is imported amid transformers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from shadow.checkpoint.opened import Opened

METHOD = "shadow"


class ShadowConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json, as `shadow.checkpoint.folder` writes it."""

    def __init__(self, **told: Any) -> None:
        vars(self).update(told)
        self.quant_method: Any = METHOD  # transformers' own are members of an enum


class ShadowQuantizer(HfQuantizer):
    """Quantises nothing: the weights are the dense model's, and what is loaded is in a `sparse` block.

    opened: that block; None before the model is loaded and after `model.dequantize()`, which ends it.
    """

    requires_calibration = True  # so that a dense folder with this config is refused

    def __init__(self, quantization_config: ShadowConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.opened: Opened | None = None
        self.where: Path | None = None  # the folder of the weights' files

    def update_attn_implementation(self, config: "PretrainedConfig") -> "PretrainedConfig":
        """Takes away the sentence that stops a transformers without this package; see `folder.STOPS`."""
        if hasattr(config, "transformers_weights"):
            del config.transformers_weights
        return config

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        if files := kwargs.get("checkpoint_files"):
            self.where = Path(files[0]).parent

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **kwargs: Any
    ) -> "PreTrainedModel":
        from shadow.checkpoint.folder import read
        from shadow.checkpoint.opened import Opened

        config = self.quantization_config.to_dict()
        self.opened = Opened(model, read(config, str(model.name_or_path), self.where))
        return model

    def _dequantize(self, model: "PreTrainedModel", dtype: Any = None) -> "PreTrainedModel":
        if self.opened is not None:
            self.opened.close()
            self.opened = None
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
