//! `vmrun update`.

use std::path::PathBuf;
use std::process::ExitCode;

use vmrun_runtime::state::Container;
use vmrun_runtime::update::{Limits, UpdateFlags, update};

use super::{FAILED, tell};

/// As runc has them.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// File with the new limits, or - for standard input; other flags are ignored then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// Weight against other containers
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Real-time period, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<u64>,
    /// Real-time CPU time, in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs of the host
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes of the host
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Whether the container only gets what others leave, 0 or 1
    #[arg(long, value_name = "IDLE")]
    pub cpu_idle: Option<i64>,
    /// Limit of memory
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory that is protected
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_reservation: Option<String>,
    /// Limit of memory and swap together
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Deprecated, and without effect
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, hide = true)]
    pub kernel_memory: Option<String>,
    /// Deprecated, and without effect
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Most processes
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Not supported
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub l3_cache_schema: Option<String>,
    /// Not supported
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub mem_bw_schema: Option<String>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

impl UpdateArgs {
    /// Where the new limits are.
    pub fn limits(self) -> Limits {
        if let Some(file) = self.resources {
            return Limits::File(file);
        }
        Limits::Flags(Box::new(UpdateFlags {
            blkio_weight: self.blkio_weight,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_burst: self.cpu_burst,
            cpu_share: self.cpu_share,
            cpu_rt_period: self.cpu_rt_period,
            cpu_rt_runtime: self.cpu_rt_runtime,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            cpu_idle: self.cpu_idle,
            memory: self.memory,
            memory_reservation: self.memory_reservation,
            memory_swap: self.memory_swap,
            pids_limit: self.pids_limit,
            l3_cache_schema: self.l3_cache_schema,
            mem_bw_schema: self.mem_bw_schema,
        }))
    }
}

/// Changes the limits of a container.
pub fn run(container: &Container, limits: &Limits) -> ExitCode {
    match update(container, limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Verb, parse};
    use std::ffi::OsString;

    fn typed(words: &[&str]) -> Limits {
        let argv = ["vmrun", "update"].iter().chain(words);
        let args = parse(argv.map(OsString::from).collect(), |_| false);
        match args.unwrap().verb {
            Verb::Update(args) => args.limits(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_engines_call_it() {
        assert_eq!(typed(&["--resources", "-", "c"]), Limits::File("-".into()));
        assert_eq!(typed(&["--resources=-", "c"]), Limits::File("-".into()));
        assert_eq!(
            typed(&["-r", "/f", "--memory", "1", "c"]),
            Limits::File("/f".into())
        );
    }

    #[test]
    fn single_values() {
        let Limits::Flags(flags) = typed(&[
            "--memory",
            "64m",
            "--memory-swap",
            "-1",
            "--cpu-quota",
            "-1",
            "--cpu-share",
            "512",
            "--pids-limit",
            "-1",
            "--blkio-weight",
            "100",
            "--cpuset-cpus",
            "0-1",
            "c",
        ]) else {
            panic!("a file");
        };
        let expected = UpdateFlags {
            memory: Some("64m".into()),
            memory_swap: Some("-1".into()),
            cpu_quota: Some(-1),
            cpu_share: Some(512),
            pids_limit: Some(-1),
            blkio_weight: Some(100),
            cpuset_cpus: Some("0-1".into()),
            ..UpdateFlags::default()
        };
        assert_eq!(*flags, expected);
    }
}
