"""Hidden states below the first layer that trains, computed once and used again.

If the embeddings and the first layers of a model are frozen (shared with the reference, `requires_grad=False`, or
LoRA on the top layers only), the hidden states that enter the first trained layer are the same in every PPO epoch, and
the same for a reference with the same bottom. They are recorded in the first pass; later passes feed them to
the first trained layer and let the layers below return their input.

Nothing here knows an architecture: which layers are frozen, what they return, and whether the shortcut gives the same
numbers is tested on the running model. If it does not fit, there is no cut, and every pass runs the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from trl_step.models.inner_model import decoder_backbone, plain_model, spans_devices, takes_argument
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import replaced_forward
from trl_step.models.shortcuts.packed_row import PackedRow
from trl_step.private_names import checkpoint_function

logger = logging.getLogger(__name__)

PROBE_IDS = ((1, 2, 3),)


class TrunkCut(NamedTuple):
    """A model is cut just before `layers[depth]`."""

    layers: list[nn.Module]
    depth: int
    returns_tuple: bool
    """what a layer returns: a tuple of one tensor, or the tensor"""


def find_cut(model: nn.Module) -> TrunkCut | None:
    """Where the frozen bottom of a decoder-only model ends, or None if it has none that can be left out.

    Args:
        model: a transformers model, or a PeftModel around one; it is left as it was.
    """
    layers = _layers(model)
    if layers is None or any(parameter.requires_grad for parameter in layers[0].parameters()):
        return None
    # a layer that is left out would not gather its weights, or move its input, as the others expect
    if is_sharded(model) or spans_devices(model):
        return None
    if any(_asks_its_input(layer) for layer in layers):
        return None
    try:
        cut = _deepest_frozen(model, layers)
        if cut is not None and not _gives_the_same(model, cut):
            logger.debug("%s: the numbers change when frozen layers are left out", type(plain_model(model)).__name__)
            return None
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        logger.debug("%s cannot be cut above its frozen layers: %s", type(plain_model(model)).__name__, error)
        return None
    return cut


def same_bottom(model: nn.Module, other: nn.Module, cut: TrunkCut, as_other: Callable[[], Any]) -> TrunkCut | None:
    """The cut of `other` at the same depth, if the same hidden states arrive there, bit for bit; else None.

    Args:
        as_other: context manager in which `other` is asked (another adapter of the same model)
    """
    layers = _layers(other)
    if layers is None or len(layers) != len(cut.layers):
        return None
    theirs = cut._replace(layers=layers)
    with torch.no_grad():
        mine = _probe_states(model, cut)
        with as_other():
            yours = _probe_states(other, theirs)
    return theirs if torch.equal(mine, yours) else None


@contextmanager
def recording(cut: TrunkCut, states: list[torch.Tensor]) -> Iterator[None]:
    """Append the hidden states [b, S, D] that enter `layers[depth]` to `states`."""

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).detach())

    handle = cut.layers[cut.depth].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def resuming(cut: TrunkCut, states: torch.Tensor) -> Iterator[None]:
    """Let `states` [b, S, D] enter `layers[depth]`, and skip the layers below. Surround the backward pass as well:
    a checkpointed layer runs again there."""
    states = states.contiguous()  # columns of a batch; a layer may ask for a view

    def put(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    def hand_through(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if cut.returns_tuple else hidden

    with ExitStack() as stack:
        stack.callback(cut.layers[cut.depth].register_forward_pre_hook(put, with_kwargs=True).remove)
        for layer in cut.layers[: cut.depth]:
            stack.enter_context(replaced_forward(layer, hand_through))
        yield


def _layers(model: nn.Module) -> list[nn.Module] | None:
    """The decoder's layers in order, if it is a decoder-only model that holds them in one list."""
    base = plain_model(model)
    backbone = None if base.config.is_encoder_decoder else decoder_backbone(model)
    if backbone is None:
        return None
    count = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", None)
    # OPT keeps its layers one level deeper
    places = [backbone, *backbone.children()]
    found = [m for place in places for m in place.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(found[0]) if len(found) == 1 else None


def _asks_its_input(layer: nn.Module) -> bool:
    """Whether a layer is checkpointed in torch's older way: its weights get a gradient only if its input takes one."""
    if not getattr(layer, "gradient_checkpointing", False):
        return False
    return bool(getattr(checkpoint_function(layer), "keywords", {}).get("use_reentrant", True))


def _run(model: nn.Module) -> torch.Tensor:
    """Logits of three tokens, through whatever adapter is around the model: a trained prompt must not go unseen."""
    ids = torch.tensor(PROBE_IDS, device=plain_model(model).get_input_embeddings().weight.device)
    options = {"use_cache": False} if takes_argument(model, "use_cache") else {}
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits


def _deepest_frozen(model: nn.Module, layers: list[nn.Module]) -> TrunkCut | None:
    """The last layer whose input carries no gradient: everything before it is frozen."""
    frozen: dict[int, bool] = {}
    tuples: list[bool] = []
    embedding = plain_model(model).get_input_embeddings()
    with ExitStack() as stack:
        if not any(parameter.requires_grad for parameter in embedding.parameters()):
            # for checkpointing transformers lets frozen embeddings ask for a gradient that nobody takes
            stack.callback(embedding.register_forward_hook(lambda _module, _args, output: output.detach()).remove)
        for i, layer in enumerate(layers):

            def note(_module: nn.Module, args: Any, kwargs: Any, i: int = i) -> None:
                frozen[i] = not (args[0] if args else kwargs["hidden_states"]).requires_grad

            def note_output(_module: nn.Module, _args: Any, output: Any) -> None:
                if isinstance(output, tuple) and len(output) != 1:
                    raise ValueError("a layer returns more than its hidden states")
                tuples.append(isinstance(output, tuple))

            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(note_output).remove)
        with torch.enable_grad():
            _run(model)
    depth = max((i for i, is_frozen in frozen.items() if is_frozen), default=0)
    if len(frozen) != len(layers) or depth == 0:
        return None
    return TrunkCut(layers, depth, tuples[0])


def _probe_states(model: nn.Module, cut: TrunkCut) -> torch.Tensor:
    states: list[torch.Tensor] = []
    with recording(cut, states):
        _run(model)
    return states[0]


@torch.no_grad()
def _gives_the_same(model: nn.Module, cut: TrunkCut) -> bool:
    states: list[torch.Tensor] = []
    with recording(cut, states):
        whole = _run(model)
    with resuming(cut, states[0]):
        return torch.equal(_run(model), whole)


class FrozenTrunk:
    """The recorded hidden states of one batch, for the policy and, if its bottom is the same, the reference.

    Args:
        cut: the cut of the policy
        reference_cut: the cut of the reference, if the same hidden states arrive there
        size: [B, S] of the batch
    """

    def __init__(self, cut: TrunkCut, reference_cut: TrunkCut | None, size: torch.Size) -> None:
        self._cut, self._reference_cut, self._size = cut, reference_cut, size
        self.states: torch.Tensor | None = None
        """[B, S, D] once the first pass is through"""

    @classmethod
    def of(
        cls, policy: nn.Module, reference: nn.Module, as_reference: Callable[[], Any], size: torch.Size
    ) -> FrozenTrunk | None:
        """That of a policy, None if it has no frozen bottom.

        Args:
            policy: the policy's model, a transformers model or a PeftModel around one
            reference: the reference's
            as_reference: context manager in which `reference` is asked
            size: [B, S] of the batch
        """
        cut = find_cut(policy)
        return None if cut is None else cls(cut, same_bottom(policy, reference, cut, as_reference), size)

    @property
    def depth(self) -> int:
        """Layers that run once."""
        return self._cut.depth

    @property
    def serves_reference(self) -> bool:
        """Whether the reference goes on from the policy's hidden states."""
        return self._reference_cut is not None

    @contextmanager
    def policy(self, samples: torch.Tensor, columns: slice, row: PackedRow | None = None) -> Iterator[None]:
        """A pass of the policy over some samples [b], recorded.

        Args:
            samples: int64 [b], their indices in the batch
            columns: of S, the positions that they were cut down to
            row: how the model runs on them, if not as [b, S]
        """
        seen: list[torch.Tensor] = []
        with recording(self._cut, seen):
            yield
        if self.states is None:
            self.states = seen[0].new_zeros(*self._size, seen[0].shape[-1])
        self.states[samples, columns] = seen[0] if row is None else row.unpack(seen[0])

    @contextmanager
    def reference(self, samples: torch.Tensor, columns: slice, row: PackedRow | None = None) -> Iterator[None]:
        """A pass of the reference over the same samples, after the policy's; on its states if they are the same."""
        if self._reference_cut is None or self.states is None:
            yield
        else:
            states = self.states[samples][:, columns]
            with resuming(self._reference_cut, states if row is None else row.pack(states)):
                yield

    @contextmanager
    def training(self, states: torch.Tensor | None, row: PackedRow | None = None) -> Iterator[None]:
        """Forward and backward of the policy on the recorded `states` [b, S, D] of a mini-batch."""
        if states is None:
            yield
        else:
            with resuming(self._cut, states if row is None else row.pack(states)):
                yield
