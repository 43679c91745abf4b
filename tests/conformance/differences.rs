//! Where runtimes differ from the cases, and why. docs/oci.md has those of vmrun.

/// A case that a runtime is not expected to pass.
#[derive(Debug)]
pub struct Difference {
    /// Its name, as the table shows it.
    pub case: &'static str,
    pub runtimes: &'static [&'static str],
    pub reason: &'static str,
    /// It is not even tried, as it does harm or tells nothing.
    pub harmful: bool,
}

const fn differs(
    case: &'static str,
    runtimes: &'static [&'static str],
    reason: &'static str,
) -> Difference {
    Difference {
        case,
        runtimes,
        reason,
        harmful: false,
    }
}

const EARLY: &str = "poststart hooks run in create";
const NO_PATH: &str = "looks for the program without PATH";
const OLD: &str = "newer than Debian's version";
const TEXT: &str = "another text, which callers of runc do not know";

const ALL: &[Difference] = &[
    differs("execs::user_folder_and_environment", &["crun"], NO_PATH),
    differs(
        "cgroups::number_of_processes_kept",
        &["crun"],
        "writes -1 as it is",
    ),
    differs("cgroups::statistics", &["crun"], "no such verb"),
    differs(
        "seccomp::notify_needs_a_listener",
        &["crun"],
        "starts without one",
    ),
    differs("hooks::in_order_at_their_time", &["runc"], EARLY),
    differs("hooks::state_on_stdin", &["runc"], EARLY),
    differs("hooks::poststart_fails", &["runc"], EARLY),
    Difference {
        case: "hooks::poststop_fails",
        runtimes: &["crun"],
        reason: "a hook that does not read its input kills it by SIGPIPE, at times",
        harmful: true,
    },
    differs("hooks::hook_is_missing", &["crun"], TEXT),
    differs("system::domainname", &["runc"], OLD),
    differs("system::features", &["crun"], OLD),
    differs("system::log_as_json", &["crun"], TEXT),
    differs(
        "cgroups::default_path",
        &["vmrun"],
        "a cgroup of the host is made only where cgroupsPath names one",
    ),
    differs(
        "process::preserved_descriptors",
        &["vmrun"],
        "refused: a descriptor of the host cannot be passed into a machine",
    ),
    differs(
        "execs::preserved_descriptors",
        &["vmrun"],
        "a descriptor of the host cannot be passed into a machine",
    ),
    differs(
        "devices::nodes_in_the_root",
        &["vmrun"],
        "no device nodes in folders of the host; tmpfs has them",
    ),
    differs(
        "hooks::create_container_hooks",
        &["vmrun"],
        "refused: its programs are the host's and its namespaces the guest's",
    ),
    differs(
        "mounts::bind_without_submounts",
        &["vmrun"],
        "a shared folder shows what the host has mounted below it",
    ),
    differs(
        "execs::in_a_created_one",
        &["vmrun"],
        "refused until the container is started",
    ),
    differs(
        "lifecycle::create_refuses_versions_to_come",
        &["runc"],
        "it does not look at the version",
    ),
    differs("lifecycle::state_of_nothing", &["crun"], TEXT),
    differs("lifecycle::delete_of_nothing", &["crun"], TEXT),
    differs(
        "lifecycle::kill_of_a_bad_signal",
        &["crun"],
        "an unknown name is signal 0",
    ),
    differs(
        "lifecycle::pause_and_resume",
        &["crun"],
        "resumes what is not paused",
    ),
    differs(
        "process::working_folder_is_relative",
        &["crun"],
        "takes it from the root",
    ),
    differs(
        "process::rlimits_twice",
        &["runc", "crun"],
        "takes the last",
    ),
    differs("process::io_priority", &["runc", "crun"], OLD),
    differs("process::scheduler", &["runc", "crun"], OLD),
    differs("process::personality", &["runc"], OLD),
    differs(
        "process::terminal",
        &["crun"],
        "does not pass on the size at the start",
    ),
    differs("execs::further_groups", &["crun"], "no such flag"),
    differs("execs::inherits_the_environment", &["crun"], NO_PATH),
    differs("execs::capabilities", &["crun"], "--cap replaces the sets"),
    differs("execs::needs_a_container", &["crun"], TEXT),
    differs(
        "mounts::propagation_shared",
        &["runc"],
        "only where the host's mount is shared",
    ),
    differs(
        "paths::read_only_keeps_flags",
        &["crun"],
        "the flags are lost",
    ),
    differs("namespaces::twice", &["crun"], "takes one of them"),
    differs("namespaces::time_offsets", &["runc"], OLD),
    Difference {
        case: "namespaces::time_offsets",
        runtimes: &["crun"],
        reason: "as it fails it kills everything in the caller's pid namespace",
        harmful: true,
    },
];

impl Difference {
    /// That of a runtime in a case.
    pub fn of(case: &str, runtime: &str) -> Option<&'static Self> {
        let mut all = ALL.iter();
        all.find(|difference| difference.case == case && difference.runtimes.contains(&runtime))
    }
}
