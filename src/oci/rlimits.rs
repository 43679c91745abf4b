//! `process.rlimits` (config.md, "POSIX process").

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use vmrun_protocol::plan::Rlimit;

use crate::Error;

/// The limits by number; a type may come once, and soft not be over hard.
pub fn resolve(limits: &[PosixRlimit]) -> Result<Vec<Rlimit>, Error> {
    let mut resolved: Vec<Rlimit> = Vec::new();
    for (i, limit) in limits.iter().enumerate() {
        let path = || format!("process.rlimits[{i}]");
        let rlimit = Rlimit {
            resource: resource(limit.typ()),
            soft: limit.soft(),
            hard: limit.hard(),
        };
        if resolved.iter().any(|r| r.resource == rlimit.resource) {
            let problem = format!("{} is there twice", limit.typ());
            return Err(Error::property(path() + ".type", problem));
        }
        if rlimit.soft > rlimit.hard {
            let problem = format!("is over the hard limit of {}", rlimit.hard);
            return Err(Error::property(path() + ".soft", problem));
        }
        resolved.push(rlimit);
    }
    Ok(resolved)
}

/// `RLIMIT_*` of x86-64 Linux.
fn resource(name: PosixRlimitType) -> u32 {
    use PosixRlimitType::*;
    match name {
        RlimitCpu => libc::RLIMIT_CPU,
        RlimitFsize => libc::RLIMIT_FSIZE,
        RlimitData => libc::RLIMIT_DATA,
        RlimitStack => libc::RLIMIT_STACK,
        RlimitCore => libc::RLIMIT_CORE,
        RlimitRss => libc::RLIMIT_RSS,
        RlimitNproc => libc::RLIMIT_NPROC,
        RlimitNofile => libc::RLIMIT_NOFILE,
        RlimitMemlock => libc::RLIMIT_MEMLOCK,
        RlimitAs => libc::RLIMIT_AS,
        RlimitLocks => libc::RLIMIT_LOCKS,
        RlimitSigpending => libc::RLIMIT_SIGPENDING,
        RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        RlimitNice => libc::RLIMIT_NICE,
        RlimitRtprio => libc::RLIMIT_RTPRIO,
        RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(json: &str) -> Result<Vec<Rlimit>, String> {
        let limits: Vec<PosixRlimit> = serde_json::from_str(json).unwrap();
        resolve(&limits).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_and_infinity() {
        assert_eq!(
            resolved(r#"[{"type":"RLIMIT_NOFILE","soft":1024,"hard":18446744073709551615}]"#),
            Ok(vec![Rlimit {
                resource: 7,
                soft: 1024,
                hard: u64::MAX
            }])
        );
    }

    #[test]
    fn twice_and_upside_down() {
        assert_eq!(
            resolved(
                r#"[{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU","soft":1,"hard":1}]"#
            ),
            Err("process.rlimits[1].type: RLIMIT_CPU is there twice".to_owned())
        );
        assert_eq!(
            resolved(r#"[{"type":"RLIMIT_CPU","soft":2,"hard":1}]"#),
            Err("process.rlimits[0].soft: is over the hard limit of 1".to_owned())
        );
    }
}
