//! Against a systemd that the test plays.

use super::super::message::built;
use super::*;
use std::io::{BufRead, BufReader};
use std::thread::{self, JoinHandle};

struct Systemd(BufReader<UnixStream>);

impl Systemd {
    fn greeted(&mut self, answer: &str) {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.starts_with("\0AUTH EXTERNAL "), "{line:?}");
        self.say(answer.as_bytes());
    }

    fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn begun(&mut self) {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert_eq!(line, "BEGIN\r\n");
    }

    fn hear(&mut self) -> (Vec<u8>, Incoming) {
        let mut fixed = [0; FIXED_BYTES];
        self.0.read_exact(&mut fixed).unwrap();
        let mut message = fixed.to_vec();
        message.resize(whole_bytes(&fixed).unwrap(), 0);
        self.0.read_exact(&mut message[FIXED_BYTES..]).unwrap();
        let incoming = parse(&message).unwrap();
        (message, incoming)
    }
}

fn message(kind: u8, reply_to: u32, signature: &str, texts: &[&str]) -> Vec<u8> {
    let mut body = Writer::default();
    let mut texts = texts.iter();
    for kind in signature.chars() {
        match kind {
            'u' => body.u32(7),
            _ => body.text(texts.next().unwrap()),
        }
    }
    built(kind, reply_to, signature, body)
}

fn played(play: impl FnOnce(Systemd) + Send + 'static) -> (io::Result<Manager>, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let systemd = thread::spawn(move || play(Systemd(BufReader::new(theirs))));
    (Manager::greet(ours), systemd)
}

fn started(replies: Vec<Vec<u8>>) -> Result<(), String> {
    let (manager, systemd) = played(move |mut systemd| {
        systemd.greeted("OK 0123\r\n");
        systemd.begun();
        let (message, heard) = systemd.hear();
        assert_eq!(heard.member, "StartTransientUnit");
        assert_eq!(heard.texts, ["x.scope", "replace"]);
        let has = |text: &[u8]| message.windows(text.len()).any(|w| w == text);
        assert!(has(b"ssa(sv)a(sa(sv))\0") && has(b"Delegate\0\x01b\0"));
        for reply in replies {
            systemd.say(&reply);
        }
    });
    let properties = [("Delegate", Value::Bool(true))];
    let result = manager.unwrap().start_unit("x.scope", &properties);
    systemd.join().unwrap();
    result.map_err(|e| crate::error::chain(&e))
}

fn removed(job: &str, result: &str) -> Vec<u8> {
    message(SIGNAL, 0, "uoss", &[job, "x.scope", result])
}

#[test]
fn a_unit_is_there_once_its_job_is_done() {
    let reply = || message(REPLY, 1, "o", &["/job/1"]);
    let other = || removed("/job/7", "failed");
    assert_eq!(
        started(vec![other(), reply(), removed("/job/1", "done")]),
        Ok(())
    );
    // In the other order, too.
    assert_eq!(started(vec![removed("/job/1", "done"), reply()]), Ok(()));
    assert_eq!(
        started(vec![reply(), removed("/job/1", "failed")]),
        Err("systemd: unit x.scope: failed".to_owned())
    );
    let error = message(ERROR, 1, "s", &["Unit x.scope\nexists."]);
    assert_eq!(
        started(vec![error]),
        Err("systemd: Unit x.scope exists.".to_owned())
    );
    let end = started(vec![reply()]).unwrap_err();
    assert!(end.starts_with("cannot talk to systemd: "), "{end}");
    let nonsense = started(vec![vec![0; 16]]).unwrap_err();
    assert_eq!(nonsense, "cannot talk to systemd: this is not D-Bus");
}

#[test]
fn properties_are_set() {
    let (manager, systemd) = played(|mut systemd| {
        systemd.greeted("OK 0123\r\n");
        systemd.begun();
        let (_, heard) = systemd.hear();
        assert_eq!(heard.member, "SetUnitProperties");
        systemd.say(&message(REPLY, 1, "", &[]));
    });
    let properties = [("TasksMax", Value::U64(7))];
    manager
        .unwrap()
        .set_properties("x.scope", &properties)
        .unwrap();
    systemd.join().unwrap();
}

#[test]
fn a_greeting_that_is_refused() {
    let (manager, systemd) = played(|mut systemd| systemd.greeted("REJECTED EXTERNAL\r\n"));
    let error = manager.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    systemd.join().unwrap();
    let (manager, systemd) = played(|mut systemd| systemd.greeted(&"x".repeat(600)));
    assert_eq!(manager.err().unwrap().kind(), io::ErrorKind::InvalidData);
    systemd.join().unwrap();
}
