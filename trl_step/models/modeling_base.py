"""The base of the value-head wrappers: loading, saving, adapters. Legacy path of `create_reference_model`."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from trl_step.models import adapters
from trl_step.models.checkpoints import warn_of_old_adapter
from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import (
    generation_arguments,
    has_adapter,
    is_peft_model,
    plain_model,
    takes_argument,
)
from trl_step.models.loading import current_device, keep_differentiable
from trl_step.models.notices import warn_user
from trl_step.models.policy import PolicyRequest, keep_reference, load_policy, own_tensors
from trl_step.models.reference import LAYER_PATTERNS, create_reference_model
from trl_step.models.state_dicts import connect_state_dict, split_state, write_value_head
from trl_step.private_names import undivided_modules

__all__ = ["LAYER_PATTERNS", "PreTrainedModelWrapper", "create_reference_model"]

KBIT_ARGUMENTS = ("use_gradient_checkpointing", "gradient_checkpointing_kwargs")
"""Arguments of `peft.prepare_model_for_kbit_training`, which `from_pretrained` passes on."""

SAVE_ARGUMENTS = (
    "is_main_process",
    "max_shard_size",
    "safe_serialization",
    "selected_adapters",
    "state_dict",
    "variant",
)
"""Arguments of `push_to_hub` that are passed to `save_pretrained`."""

Wrapper = TypeVar("Wrapper", bound="PreTrainedModelWrapper")


class _Architectures:
    """Models of transformers and, once peft is imported, PeftModels."""

    def __get__(self, model: Any, owner: Any = None) -> tuple[type, ...]:
        peft = sys.modules.get("peft")
        return (PreTrainedModel,) if peft is None else (PreTrainedModel, peft.PeftModel)


class PreTrainedModelWrapper(nn.Module):
    """A transformers model, or a PeftModel around one, with additional modules of this library.

    Attributes:
        pretrained_model: the wrapped model.
        config: its configuration.
        is_peft_model: whether it is a PeftModel now; follows `pretrained_model`.
        policy_adapter_name: the adapter that is trained.
        reference_adapter_name: the frozen copy of the adapter that training started from, or None.
        is_sequential_parallel: whether its layers are distributed over devices.
        current_device: the device of this process.

    Class attributes, for subclasses:
        transformers_parent_class: the auto class that loads the wrapped model.
        supported_args: arguments of `from_pretrained` that are passed to the constructor of this class.
        supported_modules: additional modules that a checkpoint holds besides the wrapped model.
        supported_rm_modules: names that the score head of a reward adapter may have.
        supported_pretrained_model_architectures: classes of the models that `from_pretrained` takes.

    Args:
        pretrained_model: the model to wrap.
        score_module: the score head of a reward adapter.
        supports_rm_adapter: whether there is a reward adapter.
        rm_adapter_name: its name.

    Raises:
        ValueError: an argument that the constructor does not know; adapters that cannot be trained here or saved.
    """

    transformers_parent_class: Any = None
    supported_args: tuple[str, ...] | None = None
    supported_modules: tuple[str, ...] = ("v_head",)
    supported_rm_modules: tuple[str, ...] = ("score",)
    supported_pretrained_model_architectures: Any = _Architectures()

    def __init__(
        self,
        pretrained_model: Any = None,
        score_module: nn.Module | None = None,
        supports_rm_adapter: bool = False,
        rm_adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(set(kwargs) - set(self.supported_args or ()))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} does not know {', '.join(unknown)}: the constructor wraps a model as it is. "
                f"What loads or changes one goes to {type(self).__name__}.from_pretrained, which takes objects too"
            )
        adapters.check_adapters(pretrained_model)
        keep_differentiable(pretrained_model)
        super().__init__()
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self.is_loaded_in_8bit = getattr(pretrained_model, "is_loaded_in_8bit", False)
        self.is_loaded_in_4bit = getattr(pretrained_model, "is_loaded_in_4bit", False)
        self.is_sequential_parallel = False
        self.current_device = current_device()
        self.supports_rm_adapter = supports_rm_adapter
        self.rm_adapter_name = rm_adapter_name
        self.policy_adapter_name = pretrained_model.active_adapter if self.is_peft_model else "default"
        self.reference_adapter_name: str | None = None
        self._why_no_reference: str | None = None
        if self.is_peft_model:  # differs from v0.7: the reference was the bare base model
            self.reference_adapter_name, self._why_no_reference = keep_reference(pretrained_model)
        if score_module is not None:
            self.score = score_module
        connect_state_dict(self)

    # --- loading ---------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[Wrapper], pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Wrapper:
        """Wrap a model object, or a model loaded from a folder or a hub repository.

        Args:
            pretrained_model_name_or_path: folder, hub name, transformers model or PeftModel. A folder or repository
                with a trained adapter is loaded on its base model. A path that exists is never looked up on a hub.
            *model_args: for the `from_pretrained` of transformers.
            peft_config: `peft.PeftConfig`; a fresh adapter of that kind is trained instead of the weights.
            is_trainable: whether a loaded adapter is trained further (default False).
            reward_adapter: folder or hub name of a reward adapter, for `compute_reward_score`.
            reward_adapter_name: its name in the model (default "reward_adapter").
            dtype, torch_dtype: of the weights; by default they are float32, see `loading.load_pretrained`.
            load_in_8bit, load_in_4bit: become a `quantization_config`.
            **kwargs: arguments of the value head (`supported_args`), of `peft.prepare_model_for_kbit_training`, and of
                the `from_pretrained` of transformers.

        Raises:
            ValueError: an argument has the wrong type; prompt learning; a reward adapter without PEFT; a checkpoint
                with half a value head; a file that could run code.
            ImportError: a package that an argument needs is missing; the message names it.
        """
        peft_config = kwargs.pop("peft_config", None)
        is_trainable = kwargs.pop("is_trainable", False)
        reward_adapter = kwargs.pop("reward_adapter", None)
        reward_adapter_name = kwargs.pop("reward_adapter_name", "reward_adapter")
        if reward_adapter is not None and not isinstance(reward_adapter, (str, os.PathLike)):
            raise ValueError(f"reward_adapter must be a folder or a hub name, not {reward_adapter!r}")
        own_kwargs, model_kwargs, kbit_kwargs = cls._split_kwargs(kwargs)
        request = PolicyRequest(
            pretrained_model_name_or_path,
            cls.transformers_parent_class,
            cls.supported_pretrained_model_architectures,
            peft_config,
            is_trainable,
            model_args,
            model_kwargs,
            kbit_kwargs,
        )
        policy = load_policy(request)
        reward: dict[str, Any] = {}
        if reward_adapter is not None:
            if not is_peft_model(policy):
                raise ValueError("reward_adapter needs a model with an adapter: pass peft_config, or a trained adapter")
            score = cls.add_and_load_reward_modeling_adapter(
                policy, os.fspath(reward_adapter), reward_adapter_name, token=model_kwargs.get("token")
            )
            reward = {"score_module": score, "supports_rm_adapter": True, "rm_adapter_name": reward_adapter_name}

        model = cls(policy, **reward, **own_kwargs)
        model.post_init(state_dict=own_tensors(request, cls.supported_modules))
        return model

    @classmethod
    def _get_current_device(cls) -> int | str:
        """The device of this process, see `loading.current_device`."""
        return current_device()

    @classmethod
    def _split_kwargs(cls, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Arguments of this constructor, of transformers' `from_pretrained`, and of PEFT's k-bit preparation."""
        own, model, kbit = {}, {}, {}
        for name, value in kwargs.items():
            if name in (cls.supported_args or ()):
                own[name] = value
            elif name in KBIT_ARGUMENTS:
                kbit[name] = value
            else:
                model[name] = value
        return own, model, kbit

    def post_init(self, *args: Any, **kwargs: Any) -> None:
        """Load the tensors of the additional modules from a checkpoint; the last step of `from_pretrained`."""
        raise NotImplementedError

    @property
    def is_peft_model(self) -> bool:
        """Whether the wrapped model is a PeftModel now."""
        return is_peft_model(self.pretrained_model)

    @is_peft_model.setter
    def is_peft_model(self, value: bool) -> None:
        if bool(value) != self.is_peft_model:
            warn_user(f"is_peft_model = {value} has no effect: it says whether pretrained_model is a PeftModel")

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of modules that sharding treats as units: what was assigned, or the wrapped model's layers."""
        own = self.__dict__.get("_own_no_split_modules")
        return undivided_modules(plain_model(self.pretrained_model)) if own is None else list(own)

    @_no_split_modules.setter
    def _no_split_modules(self, names: Sequence[str] | None) -> None:
        self.__dict__["_own_no_split_modules"] = names

    # --- what the wrapped model can do -----------------------------------------------------------------------

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's."""
        return self.pretrained_model.prepare_inputs_for_generation(*args, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`; None is `use_reentrant=False`.
        """
        with _old_names():
            self.pretrained_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        with _old_names():
            self.pretrained_model.gradient_checkpointing_disable()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        with _old_names():
            return self.pretrained_model.is_gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the first layer although the embeddings are frozen."""
        self.pretrained_model.enable_input_require_grads()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's `generate`; logits of a router of experts are switched off for the call."""
        return self.pretrained_model.generate(*args, **generation_arguments(self.pretrained_model, kwargs))

    @property
    def generation_config(self) -> Any:
        """The wrapped model's."""
        return self.pretrained_model.generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self.pretrained_model.generation_config = config

    def get_input_embeddings(self) -> nn.Module:
        """The wrapped model's."""
        return plain_model(self.pretrained_model).get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The wrapped model's."""
        return plain_model(self.pretrained_model).get_output_embeddings()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch's, but the frozen reference adapter comes last: before it stand those that the model would have
        without it, in their order."""
        reference, last = getattr(self, "reference_adapter_name", None), []
        for name, parameter in super().named_parameters(*args, **kwargs):
            if reference is not None and reference in name.split("."):
                last.append((name, parameter))
            else:
                yield name, parameter
        yield from last

    def value_parameters(self) -> list[nn.Parameter]:
        """The parameters that only values depend on."""
        return [p for name in self.supported_modules for p in getattr(self, name).parameters()]

    def __getattr__(self, name: str) -> Any:
        """`device` and `dtype` of the wrapped model; no properties, so that a subclass may set its own."""
        if name in ("device", "dtype"):
            return getattr(self.pretrained_model, name)
        return super().__getattr__(name)

    # --- saving ----------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Write the model and the value head into a folder, as safetensors.

        A whole model is one checkpoint that also loads as a plain transformers model. Of a model with adapters, the
        adapters are written (without the frozen reference), and the value head as `model.safetensors`. A whole model in
        a folder that holds an adapter is warned of: the adapter is what would be loaded.

        Args:
            save_directory: the folder.
            *args, **kwargs: of the wrapped model's `save_pretrained`, such as `max_shard_size`. `state_dict`
                replaces `self.state_dict()`, for weights that were gathered from several processes.
        """
        if not kwargs.pop("safe_serialization", True):
            warn_user("safe_serialization=False is ignored: checkpoints are written as safetensors")
        folder = os.fspath(save_directory)
        gathered = kwargs.pop("state_dict", None)
        state = dict(self.state_dict() if gathered is None else gathered)  # transformers empties the dictionary it gets
        if not self.is_peft_model:
            result = self.pretrained_model.save_pretrained(folder, *args, state_dict=state, **kwargs)
            is_main = kwargs.get("is_main_process", True)
            # an adapter inside a transformers model is all that it writes
            own = split_state(state, self.supported_modules)[0]
            if is_main and not has_adapter(self.pretrained_model):
                warn_of_old_adapter(folder)
            elif is_main and own:
                write_value_head(folder, own)
            return result
        own, of_adapters = split_state(state, self.supported_modules)
        if gathered is not None and of_adapters:
            kwargs["state_dict"] = of_adapters
        kept = [name for name in self.pretrained_model.peft_config if name != self.reference_adapter_name]
        kwargs.setdefault("selected_adapters", kept)
        result = self.pretrained_model.save_pretrained(folder, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            adapters.remove_paths_from_card(folder, self.pretrained_model)
        if own and kwargs.get("is_main_process", True):
            write_value_head(folder, own)
        return result

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload what `save_pretrained` writes to a hub repository.

        Args:
            repo_id: the repository; created if it does not exist.
            **kwargs: `private` and `token`; `commit_message`, `commit_description`, `revision`, `create_pr` and other
                arguments of `huggingface_hub.HfApi.upload_folder`; the arguments of `save_pretrained`.

        Returns:
            The commit information of `huggingface_hub`.
        """
        from huggingface_hub import HfApi

        saving = {name: kwargs.pop(name) for name in SAVE_ARGUMENTS if name in kwargs}
        api = HfApi(token=kwargs.pop("token", None))
        repo_id = api.create_repo(repo_id, private=kwargs.pop("private", None), exist_ok=True).repo_id
        kwargs.setdefault("commit_message", f"Upload {type(self).__name__}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The tensors under the names of the wrapped model, and v_head.summary.weight and .bias.

        For a model with adapters: everything but the frozen base weights. `load_state_dict` loads it strictly.
        """
        # differs from v0.7: with adapters, it had only the value head
        return super().state_dict(*args, **kwargs)

    # --- adapters --------------------------------------------------------------------------------------------

    @contextmanager
    def reference_adapter(self) -> Iterator[None]:
        """Inside, the model is its own reference; afterwards it is restored.

        The reference is the frozen copy of the adapter that training started from, or, if training started from the
        base model, the base model without adapters.

        Raises:
            ValueError: the model has no adapters, so it cannot be its own reference; or PEFT could not hold the
                adapter twice.
        """
        if not self.is_peft_model:
            raise ValueError("the model has no adapters: its reference is another model, see create_reference_model")
        if self._why_no_reference is not None:
            raise ValueError(f"{self._why_no_reference}. Pass a ref_model to the trainer.")
        name = self.reference_adapter_name
        model = self.pretrained_model
        with adapters.without_adapter(model) if name is None else adapters.active_adapter(model, name):
            yield

    @classmethod
    def add_and_load_reward_modeling_adapter(
        cls,
        pretrained_model: Any,
        adapter_model_id: str,
        adapter_name: str = "reward_model_adapter",
        token: str | bool | None = None,
    ) -> nn.Linear:
        """Add a reward adapter to a PeftModel and return its score head, see `adapters.load_reward_adapter`.

        Args:
            pretrained_model: PeftModel.
            adapter_model_id: folder or hub name of the adapter of a sequence classifier.
            adapter_name: its name in the model.
            token: for the hub.
        """
        hub = {} if token is None else {"token": token}
        return adapters.load_reward_adapter(
            pretrained_model, adapter_model_id, adapter_name, hub, cls.supported_rm_modules
        )

    def compute_reward_score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Scores of the reward adapter at every position, in eval mode and without a gradient.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 where a token counts.
            **kwargs: further arguments of the wrapped model.

        Returns:
            [B, S, labels]; a sequence classifier reads the last token's.

        Raises:
            ValueError: the model was loaded without a reward adapter.
        """
        if not self.supports_rm_adapter or self.rm_adapter_name is None:
            raise ValueError("the model has no reward adapter: pass reward_adapter= to from_pretrained")
        # differs from v0.7: the mode and the trainable parameters are restored
        with adapters.active_adapter(self.pretrained_model, self.rm_adapter_name), torch.no_grad():
            self.pretrained_model.eval()
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
            # differs from v0.7: padding on the left moved the positions of models that count them, such as GPT-2
            if attention_mask is not None and takes_argument(self.pretrained_model, "position_ids"):
                inputs.setdefault("position_ids", (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0))
            hidden = run_decoder(self.pretrained_model, inputs).hidden
            return self.score(hidden.to(next(self.score.parameters()).dtype))


@contextmanager
def _old_names() -> Iterator[None]:
    """transformers 5 warns at each call of the old names for gradient checkpointing; use the new ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
