//! Guests that break the rules. Whatever they do: no panic, no busy loop, nothing
//! that grows.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::super::device::Device;
use super::super::super::testing::WRITE;
use super::super::muxer::CONNECTIONS_MAX;
use super::super::to_host::WINDOW;
use super::super::wire::*;
use super::guest::*;
use crate::spec::HostPort;

/// The connection was reset, and the host's stream has ended.
fn assert_reset(guest: &mut Guest, host: &mut UnixStream, why: &str) {
    assert_eq!(guest.receive_ops(), [OP_RST], "{why}");
    assert_eq!(guest.counts(), (0, 0, 0), "{why}");
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
}

#[test]
fn packets_for_or_from_others_are_dropped() {
    for (src_cid, dst_cid) in [
        (GUEST_CID, 0),
        (GUEST_CID, 1),
        (GUEST_CID, GUEST_CID),
        (GUEST_CID, HOST_CID | 1 << 32),
        (HOST_CID, HOST_CID),
        (GUEST_CID + 1, HOST_CID),
        (u64::MAX, HOST_CID),
    ] {
        let (mut guest, _host) = connected();
        for op in 0..10 {
            guest.send_packet(
                Header {
                    src_cid,
                    dst_cid,
                    ..header(op)
                },
                &[],
            );
        }
        assert_eq!(guest.receive(), []);
        assert_eq!(guest.counts().0, 1);
    }
}

#[test]
fn other_types_of_socket_are_refused() {
    for type_ in [0, 2, 3, u16::MAX] {
        let (mut guest, _host) = connected();
        guest.send_packet(
            Header {
                type_,
                ..header(OP_REQUEST)
            },
            &[],
        );
        let packets = guest.receive();
        assert_eq!(
            (packets.len(), packets[0].0.op, packets[0].0.type_),
            (1, OP_RST, type_)
        );
        guest.send_packet(
            Header {
                type_,
                ..header(OP_RST)
            },
            &[],
        );
        assert_eq!(guest.receive(), [], "a reset is never answered");
        assert_eq!(guest.counts().0, 1);
    }
}

#[test]
fn operations_that_make_no_sense_reset_the_connection() {
    for op in [0, OP_REQUEST, OP_RESPONSE, 8, 9, u16::MAX] {
        let (mut guest, mut host) = connected();
        guest.send(op);
        assert_reset(&mut guest, &mut host, &format!("op {op}"));
    }
}

#[test]
fn packets_of_no_connection_are_answered_with_a_reset() {
    let mut guest = Guest::new(vec![]);
    for op in [
        0,
        OP_RESPONSE,
        OP_SHUTDOWN,
        OP_RW,
        OP_CREDIT_UPDATE,
        OP_CREDIT_REQUEST,
        99,
    ] {
        guest.send(op);
        assert_eq!(guest.receive_ops(), [OP_RST], "{op}");
    }
    guest.send(OP_RST);
    assert_eq!(guest.receive(), []);
}

#[test]
fn anything_but_an_answer_to_a_request_resets() {
    for op in [
        0,
        OP_REQUEST,
        OP_SHUTDOWN,
        OP_RW,
        OP_CREDIT_UPDATE,
        OP_CREDIT_REQUEST,
        99,
    ] {
        let mut guest = Guest::new(vec![]);
        let mut host = guest.handle.connect(77).unwrap();
        let dst_port = guest.receive()[0].0.src_port;
        guest.send_packet(
            Header {
                src_port: 77,
                dst_port,
                ..header(op)
            },
            &[],
        );
        assert_reset(&mut guest, &mut host, &format!("op {op}"));
    }
}

#[test]
fn an_answer_before_the_request_was_sent_resets() {
    let mut guest = Guest::without_buffers(vec![]);
    let _host = guest.handle.connect(77).unwrap();
    guest.run();
    let guess = Header {
        src_port: 77,
        dst_port: 1 << 30,
        ..header(OP_RESPONSE)
    };
    guest.send_packet(guess, &[]);
    assert_eq!(guest.counts(), (0, 0, 1));
}

#[test]
fn data_after_shutdown_resets() {
    let (mut guest, mut host) = connected();
    guest.shut_down(SHUTDOWN_SEND);
    guest.send_data(b"one more thing");
    assert_reset(&mut guest, &mut host, "");
}

#[test]
fn more_than_the_window_resets() {
    let (mut guest, mut host) = connected();
    let mut sent = 0;
    while guest.counts().0 == 1 {
        guest.send_data(&[1; 16 * 1024]);
        sent += 16 * 1024;
        assert!(sent < 16 * WINDOW, "the window has no end");
    }
    assert!(sent > WINDOW);
    // The stream had taken some, so credit may have come first.
    assert_eq!(guest.receive_ops().last(), Some(&OP_RST));
    assert_eq!(guest.counts(), (0, 0, 0));
    host.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn unknown_shutdown_flags_mean_nothing() {
    let (mut guest, _host) = connected();
    guest.shut_down(0);
    guest.shut_down(!(SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    guest.send_data(b"x");
    assert_eq!(guest.receive(), []);
    assert_eq!(guest.counts().0, 1);
}

#[test]
fn half_open_connections_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Path(path))]);
    let mut hosts = Vec::new();
    for i in 0..100_000 {
        guest.queue_packet(
            Header {
                src_port: i,
                ..header(OP_REQUEST)
            },
            &[],
        );
        if i % 16 == 15 {
            guest.kick();
            hosts.extend(std::iter::from_fn(|| listener.accept().ok()));
        }
    }
    let (connections, ready, resets) = guest.counts();
    assert_eq!((connections, ready), (CONNECTIONS_MAX, CONNECTIONS_MAX));
    assert!(resets <= 256, "{resets}");
    assert_eq!(hosts.len(), CONNECTIONS_MAX);
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Path(path))]);
    for i in 0..20_000 {
        guest.queue_packet(
            Header {
                src_port: i,
                ..header(OP_REQUEST)
            },
            &[],
        );
        guest.send_packet(
            Header {
                src_port: i,
                ..header(OP_RST)
            },
            &[],
        );
        while listener.accept().is_ok() {}
    }
    assert_eq!(guest.counts(), (0, 0, 0));
}

#[test]
fn a_storm_of_resets_and_strays_is_bounded() {
    let mut guest = Guest::without_buffers(vec![]);
    for i in 0..100_000 {
        let op = if i % 2 == 0 { OP_RST } else { OP_RW };
        guest.queue_packet(
            Header {
                src_port: i,
                ..header(op)
            },
            &[],
        );
        if i % 16 == 15 {
            guest.kick();
        }
    }
    let (connections, ready, resets) = guest.counts();
    assert_eq!((connections, ready), (0, 0));
    assert_eq!(resets, 256);
    assert_eq!(guest.run(), 0, "the loop sleeps");
}

#[test]
fn transmit_buffers_of_every_length_are_survived() {
    for len in 0..=64_u32 {
        for header_len in 0..=64_u32 {
            let (mut guest, mut host) = connected();
            let at = 0x20_0000;
            let packet = data_header(len as usize).to_bytes();
            guest.memory.write_slice(&packet, GuestAddress(at)).unwrap();
            // Data in the same buffer, then in one of its own that is too short,
            // just right, or too long.
            guest.tx.add(&[(at, header_len, 0)]);
            for data_len in [len.saturating_sub(1), len, len + 1] {
                guest
                    .tx
                    .add(&[(at, header_len, 0), (at + 0x1000, data_len, 0)]);
            }
            guest.kick();
            let mut data = Vec::new();
            let _ = host.read_to_end(&mut data);
            let inline = header_len >= HEADER_LEN + len;
            let apart = if header_len < HEADER_LEN || len == 0 {
                0
            } else {
                2
            };
            let expected = len as usize * (apart + usize::from(inline && len > 0));
            assert_eq!(data.len(), expected, "{header_len} {len}");
        }
    }
}

#[test]
fn transmit_buffers_across_the_end_of_ram_are_dropped() {
    let (mut guest, mut host) = connected();
    let at = 0x20_0000;
    guest
        .memory
        .write_slice(&data_header(64).to_bytes(), GuestAddress(at))
        .unwrap();
    for address in (RAM_LEN - 64 + 1..=RAM_LEN).chain([u64::MAX - 63, u64::MAX, 1 << 40]) {
        guest.tx.add(&[(at, HEADER_LEN, 0), (address, 64, 0)]);
        guest.kick();
        guest
            .tx
            .add(&[(address.max(RAM_LEN - 43), HEADER_LEN, 0), (at, 64, 0)]);
        guest.kick();
    }
    let length_lies = [(at, u32::MAX, 0), (at, u32::MAX, WRITE)];
    for buffer in length_lies {
        guest.tx.add(&[(at, HEADER_LEN, WRITE), buffer]);
        guest.tx.add(&[buffer, (at, 64, WRITE)]);
        guest.kick();
    }
    assert!(host.read(&mut [0]).is_err(), "nothing has come");
    assert_eq!(guest.counts().0, 1);
}

#[test]
fn a_length_beyond_the_largest_packet_is_dropped() {
    for len in [PAYLOAD_MAX + 1, 1 << 31, u32::MAX] {
        let (mut guest, mut host) = connected();
        let at = 0x20_0000;
        let packet = Header {
            len,
            ..header(OP_RW)
        };
        guest
            .memory
            .write_slice(&packet.to_bytes(), GuestAddress(at))
            .unwrap();
        guest.tx.add(&[(at, HEADER_LEN, 0), (0, len, 0)]);
        guest.tx.add(&[(at, u32::MAX, 0)]);
        guest.kick();
        assert!(host.read(&mut [0]).is_err());
    }
}

#[test]
fn receive_buffers_that_cannot_be_used_are_given_back_empty() {
    let (ours, _host) = UnixStream::pair().unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Once(ours))]);
    let at = 0x10_0000;
    let bad = [
        vec![(at, HEADER_LEN, 0), (at + 0x1000, 4096, WRITE)],
        vec![(at, HEADER_LEN, WRITE), (at + 0x1000, 4096, 0)],
        vec![(at, HEADER_LEN - 1, WRITE), (at + 0x1000, 4096, WRITE)],
        vec![(at, HEADER_LEN, WRITE)],
        vec![(at, HEADER_LEN, WRITE), (at + 0x1000, 0, WRITE)],
        vec![(at, 0, WRITE)],
        vec![(RAM_LEN - 43, HEADER_LEN, WRITE), (at, 4096, WRITE)],
        vec![(at, HEADER_LEN, WRITE), (RAM_LEN - 1, 4096, WRITE)],
        vec![(at, HEADER_LEN, WRITE), (u64::MAX, 4096, WRITE)],
        vec![(at, u32::MAX, WRITE)],
    ];
    for chain in &bad {
        guest.rx.add(chain);
    }
    guest.send(OP_REQUEST);
    let used = guest.rx.drain_used();
    assert_eq!(
        used.iter().map(|&(_, len)| len).collect::<Vec<_>>(),
        [0; 10]
    );
    guest
        .rx
        .add(&[(at, HEADER_LEN, WRITE), (at + 0x1000, 1, WRITE)]);
    guest.vsock().queue_event(0).unwrap();
    assert_eq!(
        guest.rx.drain_used().len(),
        1,
        "the packet waited for a good one"
    );
}

#[test]
fn broken_rings_are_errors() {
    let mut guest = Guest::new(vec![]);
    guest.tx.set_avail_idx(1000);
    assert!(guest.vsock().queue_event(1).is_err());
    let mut guest = Guest::without_buffers(vec![]);
    guest.rx.set_avail_idx(1000);
    guest.queue_packet(header(OP_RW), &[]);
    assert!(guest.vsock().queue_event(1).is_err());
    let mut guest = Guest::new(vec![]);
    guest.tx.add_head(128);
    assert!(guest.vsock().queue_event(1).is_err());
}

#[test]
fn loops_of_descriptors_end() {
    let mut guest = Guest::new(vec![]);
    let at = 0x20_0000;
    guest
        .memory
        .write_slice(&data_header(64).to_bytes(), GuestAddress(at))
        .unwrap();
    guest
        .tx
        .write_descriptor(0, Descriptor::new(at, HEADER_LEN, 1, 0));
    guest.tx.add_head(0);
    guest
        .tx
        .write_descriptor(1, Descriptor::new(at, HEADER_LEN, 1, 500));
    guest.tx.add_head(1);
    guest.tx.write_descriptor(2, Descriptor::new(at, 64, 4, 0));
    guest.tx.add_head(2);
    guest.kick();
    assert_eq!(guest.counts().0, 0);
}

#[test]
fn the_event_queue_is_accepted_and_left_alone() {
    let mut guest = Guest::new(vec![]);
    guest.events.add(&[(0x20_0000, 8, WRITE)]);
    guest.vsock().queue_event(2).unwrap();
    assert_eq!(guest.events.drain_used(), []);
}

fn any_header() -> impl Strategy<Value = Header> {
    let port = || prop_oneof![Just(PORT), Just(OWN_PORT), Just(1 << 30), any::<u32>()];
    (
        (
            port(),
            port(),
            0_u16..10,
            any::<u32>(),
            prop_oneof![Just(TYPE_STREAM), any::<u16>()],
        ),
        (
            prop_oneof![Just(GUEST_WINDOW), Just(0), any::<u32>()],
            any::<u32>(),
            0_u32..5000,
        ),
    )
        .prop_map(
            |((src_port, dst_port, op, flags, type_), (buf_alloc, fwd_cnt, len))| {
                let len = if op == OP_RW { len } else { 0 };
                Header {
                    src_port,
                    dst_port,
                    op,
                    flags,
                    type_,
                    buf_alloc,
                    fwd_cnt,
                    len,
                    ..header(0)
                }
            },
        )
}

#[derive(Debug, Clone)]
enum Act {
    Packet(Header),
    HostConnects,
    HostWrites(usize),
    HostReads,
    HostCloses,
    GuestReceives,
    Restart,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => any_header().prop_map(Act::Packet),
        2 => Just(Act::HostConnects),
        2 => (0_usize..10_000).prop_map(Act::HostWrites),
        1 => Just(Act::HostReads),
        1 => Just(Act::HostCloses),
        3 => Just(Act::GuestReceives),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn anything_goes_without_a_panic_or_a_spin(acts in prop::collection::vec(any_act(), 1..120)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(vec![(PORT, HostPort::Path(path))]);
        let mut hosts: Vec<UnixStream> = Vec::new();
        for act in acts {
            match act {
                Act::Packet(header) => guest.send_packet(header, &vec![7; header.len as usize]),
                Act::HostConnects => hosts.extend(guest.handle.connect(OWN_PORT)),
                Act::HostWrites(len) => for mut host in &hosts {
                    let _ = std::io::Write::write(&mut host, &pattern(0, len));
                },
                Act::HostReads => for mut host in &hosts {
                    let _ = host.read(&mut [0; 10_000]);
                },
                Act::HostCloses => drop(hosts.pop()),
                Act::GuestReceives => drop(guest.receive()),
                Act::Restart => {
                    guest.restart();
                    guest.post(64);
                }
            }
            hosts.extend(std::iter::from_fn(|| listener.accept().ok()).map(|(host, _)| host));
            for host in &hosts {
                host.set_nonblocking(true).unwrap();
            }
            guest.run();
            prop_assert!(guest.counts().0 <= CONNECTIONS_MAX);
        }
    }
}
