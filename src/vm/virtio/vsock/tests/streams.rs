//! Connections between honest peers: opening, data, credit.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::super::device::Device;
use super::super::to_host::WINDOW;
use super::super::wire::*;
use super::guest::*;
use crate::spec::HostPort;

#[test]
fn the_guest_connects_and_data_flows_both_ways() {
    let (mut guest, mut host) = connected();
    guest.send_data(b"from the guest");
    assert_eq!(read_all(&mut host), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let packets = guest.receive();
    let (header, data) = &packets[0];
    assert_eq!(packets.len(), 1);
    assert_eq!((header.op, header.type_), (OP_RW, TYPE_STREAM));
    assert_eq!((header.src_port, header.dst_port), (PORT, OWN_PORT));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (WINDOW, 14));
    assert_eq!(data, b"from the host");
}

#[test]
fn one_buffer_may_hold_header_and_data() {
    use super::super::super::testing::WRITE;
    use vm_memory::{Bytes, GuestAddress};
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Once(ours))]);
    let at = 0x20_0000;
    guest.rx.add(&[(0x30_0000, 4096, WRITE)]);
    guest.rx.add(&[(0x30_1000, 4096, WRITE)]);
    guest.send(OP_REQUEST);
    let packet = [&data_header(4).to_bytes()[..], b"text"].concat();
    guest.memory.write_slice(&packet, GuestAddress(at)).unwrap();
    guest.tx.add(&[(at, packet.len() as u32, 0)]);
    guest.kick();
    assert_eq!(read_all(&mut host), b"text");
    host.write_all(b"answer").unwrap();
    guest.run();
    let used = guest.rx.drain_used();
    assert_eq!(used[1].1, HEADER_LEN + 6);
    let mut data = [0; 6];
    let address = GuestAddress(0x30_1000 + u64::from(HEADER_LEN));
    guest.memory.read_slice(&mut data, address).unwrap();
    assert_eq!(&data, b"answer");
}

#[test]
fn a_port_is_given_away_once_and_unknown_ones_are_refused() {
    let (mut guest, _host) = connected();
    for (src_port, dst_port) in [(OWN_PORT + 1, PORT), (OWN_PORT, PORT + 1)] {
        let request = Header {
            src_port,
            dst_port,
            ..header(OP_REQUEST)
        };
        guest.send_packet(request, &[]);
        let packets = guest.receive();
        assert_eq!(packets[0].0.op, OP_RST);
        assert_eq!(
            (packets[0].0.src_port, packets[0].0.dst_port),
            (dst_port, src_port)
        );
    }
    assert_eq!(guest.counts().0, 1);
}

#[test]
fn a_path_is_dialled_for_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut guest = Guest::new(vec![(PORT, HostPort::Path(path.clone()))]);
    guest.send(OP_REQUEST);
    assert_eq!(guest.receive_ops(), [OP_RST], "nobody listens");
    let listener = UnixListener::bind(&path).unwrap();
    guest.connect();
    guest.send_data(b"hello");
    let (mut host, _) = listener.accept().unwrap();
    host.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut host), b"hello");
}

#[test]
fn the_host_connects_and_what_it_wrote_meanwhile_arrives() {
    let mut guest = Guest::new(vec![]);
    let mut host = guest.handle.connect(77).unwrap();
    host.write_all(b"early").unwrap();
    let packets = guest.receive();
    let request = packets[0].0;
    assert_eq!(
        (packets.len(), request.op, request.dst_port),
        (1, OP_REQUEST, 77)
    );
    let (src_port, dst_port) = (77, request.src_port);
    guest.send_packet(
        Header {
            src_port,
            dst_port,
            ..header(OP_RESPONSE)
        },
        &[],
    );
    let packets = guest.receive();
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (OP_RW, &b"early"[..]));
    let answer = Header {
        src_port,
        dst_port,
        len: 2,
        ..header(OP_RW)
    };
    guest.send_packet(answer, b"ok");
    host.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut host), b"ok");
}

#[test]
fn two_connections_of_the_host_to_one_port_are_apart() {
    let mut guest = Guest::new(vec![]);
    let _hosts = [
        guest.handle.connect(77).unwrap(),
        guest.handle.connect(77).unwrap(),
    ];
    let packets = guest.receive();
    assert_eq!(packets.len(), 2);
    assert_ne!(packets[0].0.src_port, packets[1].0.src_port);
}

#[test]
fn the_host_may_connect_before_the_driver_is_there() {
    let mut guest = Guest::inactive(vec![]);
    let _host = guest.handle.connect(77).unwrap();
    guest.run();
    assert_eq!(guest.counts().0, 0);
    guest.activate();
    guest.post(4);
    assert_eq!(guest.receive_ops(), [OP_REQUEST]);
}

#[test]
fn too_many_waiting_connections_of_the_host_are_refused() {
    let guest = Guest::inactive(vec![]);
    let results: Vec<_> = (0..300).map(|_| guest.handle.connect(1)).collect();
    let kinds = results.iter().filter_map(|result| result.as_ref().err());
    let kinds: Vec<_> = kinds.map(|error| error.kind()).collect();
    assert_eq!(kinds, [ErrorKind::WouldBlock; 300 - 256]);
    let handle = guest.handle.clone();
    drop(guest);
    assert_eq!(
        handle.connect(1).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
}

#[test]
fn credit_is_told_when_asked() {
    let (mut guest, _host) = connected();
    guest.send_data(b"12345");
    guest.send(OP_CREDIT_REQUEST);
    let packets = guest.receive();
    assert_eq!(packets[0].0.op, OP_CREDIT_UPDATE);
    assert_eq!(packets[0].0.fwd_cnt, 5);
}

#[test]
fn credit_is_not_told_for_each_packet() {
    let (mut guest, mut host) = connected();
    let mut updates = 0;
    for i in 0..256 {
        guest.send_data(&pattern(i * 4096, 4096));
        read_all(&mut host);
        updates += guest.receive().len();
    }
    assert_eq!(updates, 256 * 4096 / (WINDOW as usize / 2));
}

#[test]
fn without_buffers_of_the_guest_nothing_spins_and_nothing_is_lost() {
    let (ours, mut host) = UnixStream::pair().unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Once(ours))]);
    guest.send(OP_REQUEST);
    host.write_all(&pattern(0, 20_000)).unwrap();
    guest.run();
    assert_eq!(guest.run(), 0, "the loop sleeps");
    guest.post(1);
    assert_eq!(guest.arrived()[0].0.op, OP_RESPONSE);
    assert_eq!(guest.run(), 0);
    guest.post(2);
    assert_eq!(guest.arrived().len(), 2);
    guest.post(8);
    assert_eq!(
        guest
            .arrived()
            .iter()
            .map(|(_, data)| data.len())
            .sum::<usize>(),
        20_000 - 8192
    );
}

#[test]
fn the_guest_is_asked_for_buffers_only_while_it_has_none() {
    let (ours, mut host) = UnixStream::pair().unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Once(ours))]);
    guest.post(2);
    guest.send(OP_REQUEST);
    assert!(!guest.rx.wants_kick());
    host.write_all(&pattern(0, 10_000)).unwrap();
    guest.run();
    assert!(guest.rx.wants_kick());
    guest.post(8);
    assert!(!guest.rx.wants_kick());
}

#[test]
fn a_read_that_finds_nothing_costs_no_buffer() {
    let (mut guest, mut host) = connected();
    for i in 1..200 {
        // A packet that is full does not tell that it was the last.
        host.write_all(&[7; RX_DATA as usize]).unwrap();
        assert_eq!(guest.receive().len(), 1, "{i}");
        let fwd_cnt = i * RX_DATA;
        let credit = Header {
            fwd_cnt,
            ..header(OP_CREDIT_UPDATE)
        };
        guest.send_packet(credit, &[]);
    }
}

#[test]
fn without_credit_of_the_guest_nothing_spins_and_nothing_is_lost() {
    let (ours, mut host) = UnixStream::pair().unwrap();
    let mut guest = Guest::new(vec![(PORT, HostPort::Once(ours))]);
    let request = Header {
        buf_alloc: 100,
        ..header(OP_REQUEST)
    };
    guest.send_packet(request, &[]);
    host.write_all(&pattern(0, 300)).unwrap();
    let received = |guest: &mut Guest| guest.receive().iter().map(|(_, d)| d.len()).sum::<usize>();
    assert_eq!(received(&mut guest), 100);
    host.write_all(&pattern(300, 10)).unwrap();
    assert_eq!(received(&mut guest), 0);
    assert_eq!(guest.run(), 0, "the loop sleeps");
    let update = Header {
        buf_alloc: 100,
        fwd_cnt: 100,
        ..header(OP_CREDIT_UPDATE)
    };
    guest.send_packet(update, &[]);
    assert_eq!(received(&mut guest), 100);
}

#[test]
fn connections_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::without_buffers(vec![(PORT, HostPort::Path(path))]);
    let mut hosts = Vec::new();
    for src_port in [1, 2, 3] {
        let request = Header {
            src_port,
            ..header(OP_REQUEST)
        };
        guest.send_packet(request, &[]);
        let (mut host, _) = listener.accept().unwrap();
        host.write_all(&pattern(0, 40_000)).unwrap();
        hosts.push(host);
    }
    guest.run();
    guest.post(12);
    let packets = guest.arrived();
    let of = |port| {
        packets
            .iter()
            .filter(|(header, _)| header.dst_port == port)
            .count()
    };
    assert_eq!([of(1), of(2), of(3)], [4, 4, 4]);
}

#[test]
fn a_batch_raises_one_interrupt() {
    let (mut guest, mut host) = connected();
    let _ = guest.interrupt.eventfd().read();
    host.write_all(&pattern(0, 40_000)).unwrap();
    for _ in 0..8 {
        guest.queue_packet(data_header(4), b"data");
    }
    guest.tx.set_used_event(1);
    guest.rx.set_used_event(1);
    guest.vsock().queue_event(1).unwrap();
    assert_eq!(guest.interrupt.eventfd().read().unwrap(), 1);
}

#[test]
fn the_context_id_is_read_in_every_piece() {
    let mut guest = Guest::inactive(vec![]);
    let mut data = [0; 8];
    guest.vsock().read_config(0, &mut data);
    assert_eq!(u64::from_le_bytes(data), GUEST_CID);
    for offset in [4, 7, 8, 9, usize::MAX] {
        let mut data = [0; 8];
        guest.vsock().read_config(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
}

#[test]
fn reserved_context_ids_are_refused() {
    use super::super::Vsock;
    use crate::spec::VsockSpec;
    for guest_cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        assert!(
            Vsock::new(VsockSpec {
                guest_cid,
                host_ports: vec![]
            })
            .is_err()
        );
    }
}

/// Both directions at once, with a reader on the host that takes little at a
/// time: every byte arrives, and neither side ever holds more than its window.
#[test]
fn eight_mib_both_ways_keep_their_order_and_memory_stays_flat() {
    const LEN: usize = 8 << 20;
    let (mut guest, mut host) = connected();
    let (mut sent, mut peer_fwd_cnt, mut to_host) = (0, 0, 0);
    let (mut written, mut to_guest) = (0, 0);
    let mut chunk = vec![0; 30_000];
    while to_host < LEN || to_guest < LEN {
        while sent < LEN && sent - peer_fwd_cnt + 8192 <= WINDOW as usize {
            let fwd_cnt = to_guest as u32;
            let packet = Header {
                fwd_cnt,
                ..data_header(8192)
            };
            guest.send_packet(packet, &pattern(sent, 8192));
            sent += 8192;
        }
        let credit = Header {
            fwd_cnt: to_guest as u32,
            ..header(OP_CREDIT_UPDATE)
        };
        guest.send_packet(credit, &[]);
        let end = (written + chunk.len()).min(LEN);
        match host.write(&pattern(written, end - written)) {
            Ok(n) => written += n,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if let Ok(n) = host.read(&mut chunk) {
            assert!(chunk[..n] == pattern(to_host, n), "at {to_host}");
            to_host += n;
        }
        for (header, data) in guest.receive() {
            assert_ne!(header.op, OP_RST);
            peer_fwd_cnt = header.fwd_cnt as usize;
            assert!(data == pattern(to_guest, data.len()), "at {to_guest}");
            to_guest += data.len();
        }
    }
    assert_eq!((to_host, to_guest), (LEN, LEN));
    assert_eq!(guest.counts().0, 1);
}
