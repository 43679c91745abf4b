//! Connections between honest peers.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::super::device::Device;
use super::super::muxer::CONNECTIONS_MAX;
use super::super::to_host::WINDOW;
use super::super::wire::*;
use super::guest::*;
use crate::spec::HostPort;

/// A guest that has connected to a stream of the host, and the host's end.
fn connected() -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(vec![(PORT, HostPort::Once(ours))]);
    guest.connect();
    (guest, theirs)
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    match stream.read_to_end(&mut data) {
        Ok(_) => data,
        Err(error) if error.kind() == ErrorKind::WouldBlock => data,
        Err(error) => panic!("{error}"),
    }
}

fn at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

fn shutdown_flags(packets: &[(Header, Vec<u8>)]) -> u32 {
    let shutdowns = packets
        .iter()
        .filter(|(header, _)| header.op == OP_SHUTDOWN);
    shutdowns.fold(0, |flags, (header, _)| flags | header.flags)
}

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
fn a_refused_connection_of_the_host_ends() {
    let mut guest = Guest::new(vec![]);
    let mut host = guest.handle.connect(77).unwrap();
    let dst_port = guest.receive()[0].0.src_port;
    guest.send_packet(
        Header {
            src_port: 77,
            dst_port,
            ..header(OP_RST)
        },
        &[],
    );
    assert!(at_end(&mut host));
    assert_eq!(guest.counts(), (0, 0, 0));
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
fn a_host_that_leaves_before_it_was_accepted_has_still_spoken() {
    let mut guest = Guest::new(vec![]);
    let mut host = guest.handle.connect(77).unwrap();
    host.write_all(b"note").unwrap();
    drop(host);
    let dst_port = guest.receive()[0].0.src_port;
    let of = |op| Header {
        src_port: 77,
        dst_port,
        ..header(op)
    };
    guest.send_packet(of(OP_RESPONSE), &[]);
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"note");
    assert_eq!(shutdown_flags(&packets), SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    guest.send_packet(of(OP_RST), &[]);
    assert_eq!(guest.counts(), (0, 0, 0));
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
fn the_guest_ends_its_direction_and_goes_on_listening() {
    let (mut guest, mut host) = connected();
    guest.send_data(b"last words");
    guest.shut_down(SHUTDOWN_SEND);
    assert_eq!(read_all(&mut host), b"last words");
    assert!(at_end(&mut host));
    host.write_all(b"heard").unwrap();
    assert_eq!(guest.receive()[0].1, b"heard");
}

#[test]
fn the_guest_stops_listening_and_the_host_cannot_write() {
    let (mut guest, mut host) = connected();
    guest.shut_down(SHUTDOWN_RECEIVE);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send_data(b"still here");
    assert_eq!(read_all(&mut host), b"still here");
}

#[test]
fn the_host_ends_its_direction_and_goes_on_listening() {
    let (mut guest, mut host) = connected();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!(shutdown_flags(&packets), SHUTDOWN_SEND);
    guest.send_data(b"heard");
    assert_eq!(read_all(&mut host), b"heard");
    guest.shut_down(SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert_eq!(guest.receive_ops(), [OP_RST]);
    assert_eq!(guest.counts(), (0, 0, 0));
}

#[test]
fn the_host_stops_listening_and_the_guest_hears_of_it() {
    let (mut guest, host) = connected();
    host.shutdown(Shutdown::Read).unwrap();
    guest.send_data(b"x");
    assert_eq!(shutdown_flags(&guest.receive()), SHUTDOWN_RECEIVE);
}

#[test]
fn a_host_that_closes_ends_both_directions_behind_its_data() {
    let (mut guest, mut host) = connected();
    host.write_all(&pattern(0, 10_000)).unwrap();
    drop(host);
    let packets = guest.receive();
    let data: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(data, pattern(0, 10_000));
    assert_eq!(packets.last().unwrap().0.op, OP_SHUTDOWN);
    assert_eq!(shutdown_flags(&packets), SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    guest.send(OP_RST);
    assert_eq!(guest.counts(), (0, 0, 0));
}

#[test]
fn a_guest_that_closes_is_confirmed_with_a_reset() {
    let (mut guest, mut host) = connected();
    guest.shut_down(SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert_eq!(guest.receive_ops(), [OP_RST]);
    assert!(at_end(&mut host));
    assert_eq!(guest.counts(), (0, 0, 0));
}

/// Sends until the host's socket is full and `window` bytes are buffered.
fn fill_window(guest: &mut Guest, window: usize) -> usize {
    let (mut sent, mut buffered) = (0, 0);
    let mut forwarded = 0;
    while buffered + 4096 <= window {
        guest.send_data(&pattern(sent, 4096));
        sent += 4096;
        guest.send(OP_CREDIT_REQUEST);
        let packets = guest.receive();
        forwarded = packets
            .last()
            .map_or(forwarded, |(header, _)| header.fwd_cnt);
        buffered = sent - forwarded as usize;
    }
    sent
}

#[test]
fn a_slow_reader_gets_everything_though_the_guest_has_given_up() {
    let (mut guest, mut host) = connected();
    let sent = fill_window(&mut guest, WINDOW as usize);
    guest.shut_down(SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert_eq!(
        guest.receive_ops(),
        [0; 0],
        "not confirmed before it is delivered"
    );
    guest.send(OP_RST);
    assert_eq!(guest.counts().0, 1);
    let mut received = Vec::new();
    while received.len() < sent {
        received.extend(read_all(&mut host));
        guest.run();
    }
    assert!(received == pattern(0, sent));
    assert!(at_end(&mut host));
    assert_eq!(guest.counts(), (0, 0, 0));
}

#[test]
fn the_name_of_an_undelivered_connection_can_be_used_again() {
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let ports = vec![
        (PORT, HostPort::Once(ours)),
        (PORT + 1, HostPort::Path(path)),
    ];
    let mut guest = Guest::new(ports);
    let to_path = |op| Header {
        dst_port: PORT + 1,
        ..header(op)
    };
    guest.send_packet(to_path(OP_REQUEST), &[]);
    let (first, _) = listener.accept().unwrap();
    let mut len = 0;
    while guest.counts().0 == 1 && len < 100 {
        guest.send_packet(
            Header {
                len: 4096,
                ..to_path(OP_RW)
            },
            &[7; 4096],
        );
        len += 1;
    }
    guest.send_packet(to_path(OP_RST), &[]);
    guest.send_packet(to_path(OP_REQUEST), &[]);
    guest.send_packet(
        Header {
            len: 3,
            ..to_path(OP_RW)
        },
        b"new",
    );
    let (mut second, _) = listener.accept().unwrap();
    second.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut second), b"new");
    drop(first);
    guest.run();
    assert_eq!(guest.counts().0, 1, "the old one went, the new one stayed");
    assert!(!at_end(&mut host));
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
fn a_reset_of_the_device_ends_all_streams() {
    let (mut guest, mut host) = connected();
    let mut other = guest.handle.connect(77).unwrap();
    guest.run();
    assert_eq!(guest.counts().0, 2);
    guest.restart();
    assert_eq!(guest.counts(), (0, 0, 0));
    assert!(at_end(&mut host) && at_end(&mut other));
    guest.post(8);
    let _host = guest.handle.connect(78).unwrap();
    assert_eq!(guest.receive_ops(), [OP_REQUEST]);
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

#[test]
fn closed_connections_make_room_for_new_ones() {
    let mut guest = Guest::new(vec![]);
    let mut hosts = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        hosts.push(guest.handle.connect(77).unwrap());
        let dst_port = guest.receive().last().unwrap().0.src_port;
        guest.send_packet(
            Header {
                src_port: 77,
                dst_port,
                ..header(OP_RESPONSE)
            },
            &[],
        );
    }
    let mut refused = guest.handle.connect(77).unwrap();
    guest.run();
    assert!(at_end(&mut refused));
    hosts.pop();
    let packets = guest.receive();
    assert_eq!(shutdown_flags(&packets), SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    let _accepted = guest.handle.connect(77).unwrap();
    assert_eq!(guest.receive_ops(), [OP_RST, OP_REQUEST]);
    assert_eq!(guest.counts().0, CONNECTIONS_MAX);
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
