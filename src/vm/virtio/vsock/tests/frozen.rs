//! A device that takes the place of a saved one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::super::super::state::DeviceState;
use super::super::super::testing::WRITE;
use super::super::wire::*;
use super::super::*;
use super::guest::*;
use crate::spec::HostPort;

const EVENTS_AT: u64 = 0x8000;

/// A restored device: saved by one that had connections, and active as that was.
fn restored(host_ports: Vec<(u32, HostPort)>, event_buffers: &[(u32, u16)]) -> Guest {
    let (mut before, _stream) = connected();
    let state = before.vsock().freeze().unwrap();
    let mut guest = Guest::inactive(host_ports);
    for (slot, &(len, flags)) in (0..).zip(event_buffers) {
        guest.events.add(&[(EVENTS_AT + slot * 16, len, flags)]);
        let poison = GuestAddress(EVENTS_AT + slot * 16);
        guest.memory.write_obj(u64::MAX, poison).unwrap();
    }
    guest.vsock().thaw(state).unwrap();
    guest.activate();
    guest.post(64);
    guest.run();
    guest
}

fn event(guest: &Guest, slot: u64) -> u64 {
    let at = GuestAddress(EVENTS_AT + slot * 16);
    guest.memory.read_obj(at).unwrap()
}

#[test]
fn the_guest_hears_once_that_its_connections_are_gone() {
    let mut guest = restored(vec![], &[(4, WRITE); 8]);
    assert_eq!(guest.events.drain_used(), [(0, 4)]);
    assert_eq!(
        event(&guest, 0),
        u64::MAX << 32,
        "id 0 in the first 4 bytes"
    );
    assert_eq!(guest.interrupt.status(), 1);
    guest.vsock().queue_event(EVENT).unwrap();
    guest.run();
    assert_eq!(guest.events.drain_used(), []);
}

#[test]
fn the_event_waits_for_a_buffer_that_takes_it() {
    let mut guest = restored(vec![], &[]);
    assert_eq!(guest.interrupt.status(), 0);
    for (len, flags) in [(3, WRITE), (4, 0)] {
        guest.events.add(&[(EVENTS_AT, len, flags)]);
        guest.vsock().queue_event(EVENT).unwrap();
    }
    guest.events.add(&[(u64::MAX - 1, 4, WRITE)]);
    guest.vsock().queue_event(EVENT).unwrap();
    assert_eq!(guest.events.drain_used(), [(0, 0), (1, 0), (2, 0)]);
    guest.events.add(&[(EVENTS_AT, 8, WRITE)]);
    guest.vsock().queue_event(EVENT).unwrap();
    assert_eq!(guest.events.drain_used(), [(3, 4)]);
}

#[test]
fn a_flood_of_useless_buffers_is_taken_in_portions() {
    let mut guest = restored(vec![], &[]);
    for round in 0..100 {
        guest.events.add(&[(EVENTS_AT, 1, WRITE)]);
        if round % 8 == 7 {
            guest.vsock().queue_event(EVENT).unwrap();
            assert_eq!(guest.events.drain_used().len(), 8);
        }
    }
}

#[test]
fn old_connections_are_unknown_and_new_ones_work() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut guest = restored(vec![(PORT, HostPort::Once(ours))], &[(4, WRITE)]);
    assert_eq!(guest.counts(), (0, 0, 0));
    guest.send_data(b"of before");
    assert_eq!(guest.receive_ops(), [OP_RST]);
    guest.connect();
    guest.send_data(b"of now");
    assert_eq!(read_all(&mut theirs), b"of now");
    theirs.write_all(b"x").unwrap();
    guest.run();
    assert_eq!(guest.receive_ops(), [OP_RW]);
    assert_eq!(theirs.read(&mut [0]).ok(), None);
}

#[test]
fn a_reset_by_the_driver_makes_the_event_needless() {
    let mut guest = restored(vec![], &[]);
    guest.restart();
    guest.events = crate::virtio::testing::GuestQueue::new(&guest.memory, 0x5000, QUEUE_SIZES[2]);
    guest.events.add(&[(EVENTS_AT, 4, WRITE)]);
    guest.vsock().queue_event(EVENT).unwrap();
    assert_eq!(guest.events.drain_used(), []);
}

#[test]
fn the_state_of_another_device_is_refused() {
    let mut guest = Guest::inactive(vec![]);
    assert!(guest.vsock().thaw(DeviceState::Rng).is_err());
}
