//! How connections between honest peers end, in halves and as a whole.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::muxer::CONNECTIONS_MAX;
use super::super::to_host::WINDOW;
use super::super::wire::*;
use super::guest::*;
use crate::spec::HostPort;

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
    let more = Header {
        len: 5,
        ..to_path(OP_RW)
    };
    guest.send_packet(more, b"again");
    assert_eq!(read_all(&mut second), b"again");
    assert!(!at_end(&mut host));
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
