//! A change of limits while the container runs: `update`'s JSON, which is
//! `linux.resources` by itself, or its flags, which are put into that form.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};
use vmrun_protocol::plan::Bytes;

use crate::host_limits::HostLimits;
use crate::{Container, Error, devices, load, resources};

/// New limits. What is not named stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUpdate {
    /// For the container's cgroup in the guest, in order.
    pub cgroup_writes: Vec<(Bytes, Bytes)>,
    /// For the machine's cgroup on the host.
    pub host_limits: HostLimits,
    /// The CPUs of the host that the machine's threads are to run on.
    pub host_cpus: Option<Vec<usize>>,
    /// What is accepted and not done, one line each, for the log.
    pub warnings: Vec<String>,
}

/// Checks the text of `update --resources`. `container` is as it was created: a
/// limit that only makes sense together with another one finds that there.
pub fn load_update(json: &[u8], container: &Container) -> Result<ResourceUpdate, Error> {
    if json.len() as u64 > load::MAX_BYTES {
        let problem = format!("over the limit of {} bytes", load::MAX_BYTES);
        return Err(Error::property("--resources", problem));
    }
    let mut warnings = Vec::new();
    let asked: LinuxResources = load::part(json, "--resources", "linux.resources", &mut warnings)?;
    check_what_is_fixed(&asked, container)?;
    let resolved = resources::resolve(&asked, Some(&container.host_limits))?;
    if let (Some(asked), Some(before)) = (resolved.memory_limit_bytes, container.memory_limit_bytes)
        && asked > before
    {
        let line = "linux.resources.memory.limit: the machine keeps the memory it was started with";
        warnings.push(line.to_owned());
    }
    Ok(ResourceUpdate {
        cgroup_writes: resolved.cgroup_writes,
        host_limits: resolved.host_limits,
        host_cpus: resolved.host_cpus,
        warnings,
    })
}

/// Engines repeat the device rules that the container has; others are not made.
fn check_what_is_fixed(asked: &LinuxResources, container: &Container) -> Result<(), Error> {
    if let Some(listed) = asked.devices().as_deref().filter(|l| !l.is_empty())
        && devices::rules(listed)? != container.plan.device_rules
    {
        let problem = "cannot be changed while the container runs";
        return Err(Error::property("linux.resources.devices", problem));
    }
    let memory = asked.memory().as_ref();
    if memory.and_then(|m| m.check_before_update()) == Some(true) {
        let path = "linux.resources.memory.checkBeforeUpdate";
        return Err(Error::property(path, "cgroup v2 makes no such check"));
    }
    Ok(())
}

/// What was typed after `update`, in runc's units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpdateFlags {
    /// `--blkio-weight`.
    pub blkio_weight: Option<u16>,
    /// `--cpu-period`, in microseconds.
    pub cpu_period: Option<u64>,
    /// `--cpu-quota`, in microseconds.
    pub cpu_quota: Option<i64>,
    /// `--cpu-burst`, in microseconds.
    pub cpu_burst: Option<u64>,
    /// `--cpu-share`.
    pub cpu_share: Option<u64>,
    /// `--cpu-rt-period`, in microseconds.
    pub cpu_rt_period: Option<u64>,
    /// `--cpu-rt-runtime`, in microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// `--cpuset-cpus`.
    pub cpuset_cpus: Option<String>,
    /// `--cpuset-mems`.
    pub cpuset_mems: Option<String>,
    /// `--cpu-idle`.
    pub cpu_idle: Option<i64>,
    /// `--memory`: bytes, or a number and b, k, m, g or t; -1 is no limit.
    pub memory: Option<String>,
    /// `--memory-reservation`, as `memory`.
    pub memory_reservation: Option<String>,
    /// `--memory-swap`, as `memory`.
    pub memory_swap: Option<String>,
    /// `--pids-limit`.
    pub pids_limit: Option<i64>,
    /// `--l3-cache-schema`.
    pub l3_cache_schema: Option<String>,
    /// `--mem-bw-schema`.
    pub mem_bw_schema: Option<String>,
}

/// As [`load_update`].
pub fn update_from_flags(
    flags: &UpdateFlags,
    container: &Container,
) -> Result<ResourceUpdate, Error> {
    for (flag, schema) in [
        ("--l3-cache-schema", &flags.l3_cache_schema),
        ("--mem-bw-schema", &flags.mem_bw_schema),
    ] {
        if schema.as_ref().is_some_and(|s| !s.is_empty()) {
            let problem = "not supported: the host's cache is not divided among machines";
            return Err(Error::property(flag, problem));
        }
    }
    let memory = object([
        ("limit", size("--memory", &flags.memory)?),
        (
            "reservation",
            size("--memory-reservation", &flags.memory_reservation)?,
        ),
        ("swap", size("--memory-swap", &flags.memory_swap)?),
    ]);
    let cpu = object([
        ("period", flags.cpu_period.map(Value::from)),
        ("quota", flags.cpu_quota.map(Value::from)),
        ("burst", flags.cpu_burst.map(Value::from)),
        ("shares", flags.cpu_share.map(Value::from)),
        ("realtimePeriod", flags.cpu_rt_period.map(Value::from)),
        ("realtimeRuntime", flags.cpu_rt_runtime.map(Value::from)),
        ("cpus", flags.cpuset_cpus.clone().map(Value::from)),
        ("mems", flags.cpuset_mems.clone().map(Value::from)),
        ("idle", flags.cpu_idle.map(Value::from)),
    ]);
    let pids = object([("limit", flags.pids_limit.map(Value::from))]);
    let block_io = object([("weight", flags.blkio_weight.map(Value::from))]);
    let resources = json!({"memory": memory, "cpu": cpu, "pids": pids, "blockIO": block_io});
    load_update(resources.to_string().as_bytes(), container)
}

fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let present = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<_, _>>())
}

/// Bytes, as runc reads them: units are powers of 1024, in either case, with or
/// without a `b` or `ib` behind.
fn size(flag: &str, text: &Option<String>) -> Result<Option<Value>, Error> {
    let Some(text) = text else {
        return Ok(None);
    };
    let refuse = || {
        let shown: String = text.chars().take(40).collect();
        Error::property(flag, format!("{shown:?} is not a size (512m, 2g, -1)"))
    };
    if text == "-1" {
        return Ok(Some(Value::from(-1)));
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse()),
    };
    let bytes = number.parse::<i64>().map_err(|_| refuse())?;
    let bytes = bytes.checked_mul(1 << shift).ok_or_else(refuse)?;
    Ok(Some(Value::from(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Limit;

    fn container() -> Container {
        let mut config: Value =
            serde_json::from_str(include_str!("testdata/runc-spec.json")).unwrap();
        config["linux"]["resources"]["memory"] = json!({"limit": 1 << 20});
        config["linux"]["resources"]["cpu"] = json!({"quota": 5000, "period": 20_000});
        load::parse(config.to_string().as_bytes()).unwrap()
    }

    fn loaded(resources: Value) -> Result<ResourceUpdate, String> {
        load_update(resources.to_string().as_bytes(), &container()).map_err(|e| e.to_string())
    }

    fn typed(flags: UpdateFlags) -> Result<ResourceUpdate, String> {
        update_from_flags(&flags, &container()).map_err(|e| e.to_string())
    }

    fn writes(update: ResourceUpdate) -> Vec<String> {
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        let line = |(f, v): &(Bytes, Bytes)| format!("{} {}", text(f), text(v));
        update.cgroup_writes.iter().map(line).collect()
    }

    #[test]
    fn what_is_named_changes() {
        let update = loaded(json!({
            "memory": {"limit": 1 << 19, "reservation": -1, "swap": 0},
            "cpu": {"shares": 1024, "cpus": "1", "idle": 0}, "pids": {"limit": -1},
            "blockIO": {"weight": 500}
        }))
        .unwrap();
        assert_eq!(update.host_limits.memory, Some(Limit::At(1 << 19)));
        assert_eq!(update.host_limits.blkio_weight, Some(500));
        assert_eq!(update.host_limits.cpu_quota_us, None);
        assert_eq!(update.host_cpus, Some(vec![1]));
        assert_eq!(update.warnings, [""; 0]);
        assert_eq!(
            writes(update),
            [
                "memory.max 524288",
                "memory.low max",
                "cpu.weight 100",
                "cpu.idle 0",
                "pids.max max"
            ]
        );
    }

    #[test]
    fn halves_of_cpu_max() {
        let of = |cpu| writes(loaded(json!({"cpu": cpu})).unwrap());
        assert_eq!(of(json!({"quota": 7000})), ["cpu.max 7000"]);
        assert_eq!(of(json!({"period": 10_000})), ["cpu.max 5000 10000"]);
        assert_eq!(
            of(json!({"quota": -1, "period": 1000})),
            ["cpu.max max 1000"]
        );
    }

    #[test]
    fn swap_is_compared_with_the_limit_there_was() {
        assert!(loaded(json!({"memory": {"swap": 1 << 20}})).is_ok());
        assert_eq!(
            loaded(json!({"memory": {"swap": 1}})).unwrap_err(),
            "linux.resources.memory.swap: counts memory in, so it must be at least its 1048576"
        );
    }

    #[test]
    fn a_machine_does_not_grow() {
        let update = loaded(json!({"memory": {"limit": 1 << 30}})).unwrap();
        assert_eq!(update.warnings.len(), 1, "{:?}", update.warnings);
    }

    #[test]
    fn flags_are_the_same_in_json() {
        let flags = UpdateFlags {
            memory: Some("1M".into()),
            memory_reservation: Some("512k".into()),
            memory_swap: Some("-1".into()),
            cpu_period: Some(1000),
            cpu_quota: Some(500),
            cpu_share: Some(2),
            cpuset_cpus: Some("0".into()),
            cpuset_mems: Some("0".into()),
            pids_limit: Some(5),
            blkio_weight: Some(10),
            ..UpdateFlags::default()
        };
        let same = loaded(json!({
            "memory": {"limit": 1 << 20, "reservation": 1 << 19, "swap": -1},
            "cpu": {"period": 1000, "quota": 500, "shares": 2, "cpus": "0", "mems": "0"},
            "pids": {"limit": 5}, "blockIO": {"weight": 10}
        }));
        assert_eq!(typed(flags), same);
        let nothing = typed(UpdateFlags::default()).unwrap();
        assert_eq!(writes(nothing), [""; 0]);
    }

    #[test]
    fn refusals() {
        for (resources, message) in [
            (
                json!({"devices": [{"allow": true, "access": "rwm"}]}),
                "linux.resources.devices: cannot be changed while the container runs",
            ),
            (
                json!({"memory": {"checkBeforeUpdate": true}}),
                "linux.resources.memory.checkBeforeUpdate: cgroup v2 makes no such check",
            ),
            (
                json!({"cpu": {"realtimeRuntime": 1}}),
                "linux.resources.cpu.realtimeRuntime: not supported: cgroup v2 has no such limit",
            ),
            (json!([1]), "--resources: [0]"),
            (
                json!({"memory": {"limit": "x"}}),
                "--resources: memory.limit",
            ),
        ] {
            assert_eq!(loaded(resources), Err(message.to_owned()));
        }
        for text in ["", "1x", "m", "-2", "9223372036854775807k", "1.5g"] {
            let flags = UpdateFlags {
                memory: Some(text.into()),
                ..UpdateFlags::default()
            };
            let message = typed(flags).unwrap_err();
            assert!(message.starts_with("--memory: "), "{message}");
        }
        let flags = UpdateFlags {
            l3_cache_schema: Some("L3:0=f".into()),
            ..UpdateFlags::default()
        };
        assert!(typed(flags).unwrap_err().starts_with("--l3-cache-schema: "));
    }

    #[test]
    fn the_containers_own_device_rules_may_be_repeated() {
        let spec: Value = serde_json::from_str(include_str!("testdata/runc-spec.json")).unwrap();
        let devices = &spec["linux"]["resources"]["devices"];
        assert!(loaded(json!({"devices": devices})).is_ok());
    }
}
