//! The conversation with systemd over its private socket (org.freedesktop.systemd1(5)).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::message::{
    ERROR, FIXED_BYTES, Incoming, REPLY, SIGNAL, Value, Writer, call, parse, whole_bytes,
};
use crate::host_cgroup::CgroupError;

/// For each thing that systemd says.
const DEADLINE: Duration = Duration::from_secs(30);

const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// Longest line of the authentication, in bytes.
const LINE_MAX_BYTES: usize = 512;

/// A connection to systemd.
pub struct Manager {
    stream: UnixStream,
    serial: u32,
}

impl Manager {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, CgroupError> {
        UnixStream::connect(path)
            .and_then(Self::greet)
            .map_err(CgroupError::Systemd)
    }

    /// D-Bus specification, "Authentication Protocol": who we are is told by the
    /// socket.
    fn greet(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > LINE_MAX_BYTES {
                return Err(nonsense());
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.write_all(b"BEGIN\r\n")?;
        Ok(Self { stream, serial: 0 })
    }

    /// Starts a transient unit, and waits until it is there.
    pub fn start_unit(
        &mut self,
        name: &str,
        properties: &[(&str, Value)],
    ) -> Result<(), CgroupError> {
        let mut body = Writer::default();
        body.text(name);
        body.text("replace");
        write_properties(&mut body, properties);
        // Auxiliary units: none.
        body.array(8, |_| {});
        let serial = self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)?;
        // The end of the job may be told before its number is.
        let (mut job, mut ended) = (None, Vec::new());
        loop {
            let message = self.hear()?;
            match message.kind {
                REPLY if message.reply_to == serial => job = message.texts.first().cloned(),
                ERROR if message.reply_to == serial => return Err(refused(message)),
                SIGNAL if message.member == "JobRemoved" => ended.push(message.texts),
                _ => {}
            }
            // Job, unit and result.
            let done = ended.iter().find(|texts| texts.first() == job.as_ref());
            match (&job, done.and_then(|texts| texts.get(2))) {
                (Some(_), Some(result)) if result == "done" => return Ok(()),
                (Some(_), Some(result)) => {
                    return Err(CgroupError::SystemdRefused(format!(
                        "unit {name}: {result}"
                    )));
                }
                _ => {}
            }
        }
    }

    /// Sets properties of a unit that is there.
    pub fn set_properties(
        &mut self,
        name: &str,
        properties: &[(&str, Value)],
    ) -> Result<(), CgroupError> {
        let mut body = Writer::default();
        body.text(name);
        // Until the next boot.
        body.bool(true);
        write_properties(&mut body, properties);
        let serial = self.call("SetUnitProperties", "sba(sv)", body)?;
        loop {
            let message = self.hear()?;
            match message.kind {
                REPLY if message.reply_to == serial => return Ok(()),
                ERROR if message.reply_to == serial => return Err(refused(message)),
                _ => {}
            }
        }
    }

    fn call(&mut self, member: &str, signature: &str, body: Writer) -> Result<u32, CgroupError> {
        self.serial += 1;
        let message = call(self.serial, (PATH, INTERFACE, member), signature, body);
        let sent = self.stream.write_all(&message);
        sent.map_err(CgroupError::Systemd)?;
        Ok(self.serial)
    }

    fn hear(&mut self) -> Result<Incoming, CgroupError> {
        let mut read = || {
            let mut fixed = [0; FIXED_BYTES];
            self.stream.read_exact(&mut fixed)?;
            let whole = whole_bytes(&fixed).ok_or_else(nonsense)?;
            let mut message = fixed.to_vec();
            message.resize(whole, 0);
            self.stream.read_exact(&mut message[FIXED_BYTES..])?;
            parse(&message).ok_or_else(nonsense)
        };
        read().map_err(CgroupError::Systemd)
    }
}

fn write_properties(body: &mut Writer, properties: &[(&str, Value)]) {
    body.array(8, |array| {
        for (name, value) in properties {
            array.property(name, value);
        }
    });
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "this is not D-Bus")
}

fn refused(message: Incoming) -> CgroupError {
    let text = message.texts.into_iter().next().unwrap_or(message.error);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    CgroupError::SystemdRefused(text.chars().take(512).map(plain).collect())
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
