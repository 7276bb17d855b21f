"""Tickets as files, compared, and refused."""

import pytest
import torch
import zoo

import lowprec_eb as lp
from lowprec_eb.tickets import channel_groups


@pytest.mark.parametrize("coupled", [True, False])
def test_a_ticket_is_saved_and_loaded_onto_a_fresh_model(tmp_path, coupled):
    model, inputs = zoo.build("preresnet20", 0)
    ticket = zoo.random_ticket(channel_groups(model, inputs, coupled), coupled)
    ticket.save(tmp_path / "deep" / "ticket.safetensors")
    loaded = lp.Ticket.load(tmp_path / "deep" / "ticket.safetensors")
    assert loaded.distance(ticket) == 0 and loaded.groups == ticket.groups and loaded.widths == ticket.widths
    fresh, _ = zoo.build("preresnet20", 1)
    one, other = (lp.compact(fresh, t, inputs) for t in (ticket, loaded))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_file_that_is_no_ticket_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors"):
        lp.Ticket.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no ticket")
    with pytest.raises(ValueError, match="text: not a whole"):
        lp.Ticket.load(tmp_path / "text")
    lp.checkpoints.save(tmp_path / "other", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="other: holds no ticket"):
        lp.Ticket.load(tmp_path / "other")


def test_tickets_are_compared_group_by_group():
    a = lp.Ticket({"x": torch.tensor([True, True, False, False])}, 0.5, 0)
    b = lp.Ticket({"x": torch.tensor([True, False, True, False])}, 0.5, 0)
    assert a.compare(b) == {"x": {"both": 1, "first": 1, "second": 1, "neither": 1}} and a.distance(b) == 0.5
    with pytest.raises(ValueError, match="same layers and widths"):
        a.compare(lp.Ticket({"y": torch.ones(4, dtype=torch.bool)}, 0.5, 0))


@pytest.mark.parametrize("mask", [torch.ones(4), torch.ones(2, 2, dtype=torch.bool), [True, False]])
def test_masks_are_flags_of_channels(mask):
    with pytest.raises(ValueError, match=r"x: a mask is a bool tensor \(channels,\), got"):
        lp.Ticket({"x": mask}, 0.5, 0)


def test_a_path_is_no_ticket():
    model, inputs = zoo.build("lenet")
    with pytest.raises(TypeError, match="must be a Ticket, got str"):
        lp.compact(model, "ticket.safetensors", inputs)
