//! What was typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use super::events::EventsArgs;
use super::exec::ExecArgs;
use super::ps::PsArgs;
use super::update::UpdateArgs;

/// Runs OCI containers, each inside its own microVM.
#[derive(Debug, Parser)]
#[command(name = "vmrun", version = version(), disable_version_flag = true)]
#[command(after_help = "`vmrun <bundle>` is short for `vmrun run <bundle>`.")]
pub struct Args {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb, those of runc among them.
#[derive(Debug, clap::Args)]
pub struct Globals {
    /// Folder for the state of containers
    #[arg(long, value_name = "FOLDER", global = true)]
    pub root: Option<PathBuf>,
    /// File that errors and warnings are added to
    #[arg(long, value_name = "FILE", global = true)]
    pub log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", global = true, default_value = "text")]
    pub log_format: LogFormat,
    /// Log more; to stderr without --log
    #[arg(long, global = true)]
    pub debug: bool,
    /// Folder that holds guest kernel and initramfs
    #[arg(long, value_name = "FOLDER", global = true)]
    pub guest_dir: Option<PathBuf>,
    /// Folder for machine templates
    #[arg(long, value_name = "FOLDER", global = true)]
    pub template_dir: Option<PathBuf>,
    /// Have cgroups on the host made by systemd
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Accepted as runc has it; nothing is different without root
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = ["true", "false", "auto"])]
    pub rootless: Option<String>,
    /// Accepted as runc once had it, and unused
    #[arg(long, value_name = "PATH", global = true, hide = true)]
    pub criu: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a container from a bundle; the exit code is the container's
    Run(Box<RunArgs>),
    /// Run a process in a container
    Exec(Box<ExecArgs>),
    /// Show the processes of a container
    Ps(PsArgs),
    /// Stop all processes of a container where they are
    Pause {
        /// The container
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// The container
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Change the limits of a container
    Update(Box<UpdateArgs>),
    /// Show what a container uses, and when it lacks memory
    Events(EventsArgs),
    /// Create a container from a bundle, to be started
    Create(Box<CreateArgs>),
    /// Run the program of a created container
    Start {
        /// The container's id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Show what a container is doing, as JSON
    State {
        /// The container's id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Send a signal to a container's init
    Kill {
        /// To all its processes
        #[arg(short, long)]
        all: bool,
        /// The container's id
        #[arg(value_name = "ID")]
        id: String,
        /// Name, with or without SIG, or number [default: TERM]
        #[arg(value_name = "SIGNAL", allow_negative_numbers = true)]
        signal: Option<String>,
    },
    /// Forget a container that has ended
    Delete {
        /// Whatever it is doing; no error if there is none
        #[arg(short, long)]
        force: bool,
        /// The container's id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List containers
    List {
        /// How: table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: String,
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Not supported yet
    #[command(hide = true, disable_help_flag = true)]
    Checkpoint(Unsupported),
    /// Not supported yet
    #[command(hide = true, disable_help_flag = true)]
    Restore(Unsupported),
    /// Show what this host offers
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what this version understands, as JSON
    Features,
    /// Write a config.json to start from; with --rootless, for a caller who is not root
    Spec {
        /// Folder for it
        #[arg(short, long, value_name = "FOLDER", default_value = ".")]
        bundle: PathBuf,
    },
    /// Show who sees to what in a bundle's config.json
    Explain {
        /// The bundle's folder
        #[arg(value_name = "BUNDLE", default_value = ".")]
        bundle: PathBuf,
    },
    /// Look after machine templates: booted once, started from many times
    #[command(subcommand)]
    Template(TemplateVerb),
    /// Anything else: a bundle, if it looks like one.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Words of a verb that is refused.
#[derive(Debug, clap::Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The bundle's folder or, with --bundle or in a bundle's folder, the container's id
    #[arg(value_name = "BUNDLE", required_unless_present = "bundle")]
    pub target: Option<OsString>,
    /// Leave it running in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Keep its state after its end
    #[arg(long)]
    pub keep: bool,
    /// Accepted as runc has it: nothing is re-parented to vmrun
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    #[command(flatten)]
    pub container: ContainerArgs,
    /// Write a timeline of the start there, in Chrome's trace format
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// A container that is to be made.
#[derive(Debug, clap::Args)]
pub struct ContainerArgs {
    /// The bundle's folder
    #[arg(short, long, value_name = "FOLDER")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that gets the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a descriptor of the container's process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File that gets the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted as runc has it: the guest's root is no ramdisk
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted as runc has it: the guest's keyrings are its own
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Only 0: descriptors of the host mean nothing in a machine
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub preserve_fds: u32,
    #[command(flatten)]
    pub shape: Shape,
    /// Memory that the host's cgroup allows beside the container's limit
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse_mib)]
    pub memory_overhead: Option<u64>,
    /// Boot the machine instead of starting it from a template
    #[arg(long)]
    pub no_template: bool,
    /// Take one of N templates, each booted by itself: see docs/threat-model.md
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = pool(), conflicts_with = "no_template")]
    pub template_pool: u8,
    #[command(flatten)]
    pub debugging: Debugging,
}

/// Size of a machine.
#[derive(Debug, clap::Args)]
pub struct Shape {
    /// Memory of the machine (512m, 2g; a plain number is MiB), rounded up to a power of two
    #[arg(short, long, value_name = "SIZE", value_parser = super::size::parse_mib)]
    pub memory: Option<u64>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u8>,
}

#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// Make a template, unless it is there
    Create {
        #[command(flatten)]
        shape: Shape,
        /// How many of them
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = pool())]
        template_pool: u8,
    },
    /// List templates
    List {
        /// How
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: ListFormat,
    },
    /// Remove templates; containers that run are not disturbed
    Rm {
        /// Keys, as `list` shows them
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
    },
    /// Remove templates that no start will use any more, and left-overs
    Prune {
        /// Remove all templates
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Table,
    Json,
}

/// Sizes of a pool of templates.
fn pool() -> impl clap::builder::TypedValueParser<Value = u8> {
    clap::value_parser!(u8).range(1..=i64::from(vmrun_runtime::template::POOL_MAX))
}

/// Shown by `--help`, not by `-h`. Each but `--profile` makes another machine than
/// those of templates: it boots.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Debugging (without templates, but for --profile)")]
pub struct Debugging {
    /// Write the guest's console (hvc0) there
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub console: Option<PathBuf>,
    /// Write the guest's early serial console there
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub serial: Option<PathBuf>,
    /// Write samples of what the guest does there, as folded call stacks
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub profile: Option<PathBuf>,
    /// Another guest kernel
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub kernel: Option<PathBuf>,
    /// Another initramfs
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub initramfs: Option<PathBuf>,
    /// A further parameter of the guest kernel; may be repeated
    #[arg(long, value_name = "PARAM", hide_short_help = true)]
    pub kernel_param: Vec<String>,
    /// How the guest kernel is entered
    #[arg(
        long,
        value_name = "PROTOCOL",
        hide_short_help = true,
        default_value = "linux64"
    )]
    pub boot_protocol: BootProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BootProtocol {
    Linux64,
    Pvh,
}

/// Lines as runc prints them; engines look for `spec:`.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let version = env!("CARGO_PKG_VERSION");
        let spec = vmrun_runtime::OCI_SPEC_VERSION;
        let commit =
            option_env!("VMRUN_COMMIT").map_or(String::new(), |c| format!("\ncommit: {c}"));
        format!("version {version}{commit}\nspec: {spec}")
    })
}

/// Parses the command line. A first word that is no verb and names a bundle (it
/// has a slash, or `is_dir` says that it is a folder) gets the verb `run`.
pub fn parse(argv: Vec<OsString>, is_dir: fn(&Path) -> bool) -> Result<Args, clap::Error> {
    let args = Args::try_parse_from(&argv)?;
    let Verb::Other(rest) = &args.verb else {
        return Ok(args);
    };
    let word = rest.first().map(OsString::as_os_str).unwrap_or_default();
    let is_bundle = word.as_encoded_bytes().contains(&b'/') || is_dir(Path::new(word));
    if !is_bundle {
        let message = format!("unknown command {word:?}");
        return Err(clap::Error::raw(ErrorKind::InvalidSubcommand, message));
    }
    let mut argv = argv;
    argv.insert(argv.len() - rest.len(), "run".into());
    Args::try_parse_from(argv)
}

/// What is wrong, without clap's usage and tips.
pub fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        || error.kind() == ErrorKind::MissingSubcommand
    {
        return "no command".to_owned();
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|l| !l.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &[&str]) -> Result<Args, clap::Error> {
        let argv = ["vmrun"].iter().chain(words).map(OsString::from).collect();
        parse(argv, |path| path == Path::new("folder"))
    }

    fn run(words: &[&str]) -> RunArgs {
        match typed(words).unwrap().verb {
            Verb::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bundle_is_short_for_run() {
        assert_eq!(run(&["run", "x"]).target, Some("x".into()));
        assert_eq!(run(&["folder"]).target, Some("folder".into()));
        let with_flags = run(&["--debug", "./x", "--memory", "64m"]);
        assert_eq!(with_flags.target, Some("./x".into()));
        assert_eq!(with_flags.container.shape.memory, Some(64));
    }

    #[test]
    fn wrong_command_lines_are_one_line() {
        for (words, expected) in [
            (&[][..], "no command"),
            (&["fly"][..], "unknown command \"fly\""),
            (
                &["run"],
                "the following required arguments were not provided: <BUNDLE>",
            ),
            (&["run", "--fly", "b"], "unexpected argument '--fly' found"),
            (&["--fly"], "unexpected argument '--fly' found"),
            (&["run", "b", "c"], "unexpected argument 'c' found"),
            (
                &["--log-format", "xml", "run", "b"],
                "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
            ),
            (
                &["run", "--memory", "1x", "b"],
                "invalid value '1x' for '--memory <SIZE>': must be a size (512m, 2g)",
            ),
            (
                &["run", "--template-pool", "17", "b"],
                "invalid value '17' for '--template-pool <N>': 17 is not in 1..=16",
            ),
            (
                &["run", "--template-pool", "2", "--no-template", "b"],
                "the argument '--template-pool <N>' cannot be used with '--no-template'",
            ),
            (
                &["template", "rm"],
                "the following required arguments were not provided: <KEY>...",
            ),
            (
                &["run", "--cpus", "300", "b"],
                "invalid value '300' for '--cpus <N>': 300 is not in 0..=255",
            ),
        ] {
            let error = typed(words).unwrap_err();
            assert!(error.use_stderr());
            assert_eq!(one_line(&error), expected, "{words:?}");
        }
    }

    #[test]
    fn what_engines_put_first() {
        let args = typed(&[
            "--root",
            "/run/x",
            "--debug",
            "--log",
            "/l",
            "--log-format",
            "json",
            "--systemd-cgroup",
            "--rootless=false",
            "run",
            "--bundle",
            "/b",
            "id",
        ])
        .unwrap();
        assert_eq!(args.globals.log_format, LogFormat::Json);
        assert_eq!(args.globals.rootless.as_deref(), Some("false"));
        let Verb::Run(run) = args.verb else { panic!() };
        assert_eq!(run.container.bundle, Some("/b".into()));
        assert_eq!(run.target, Some("id".into()));
    }

    #[test]
    fn probes_for_checkpoints_are_no_help() {
        for words in [
            &["checkpoint", "--help"][..],
            &["restore", "--lsm-mount-context"],
            &["checkpoint", "--image-path", "/x", "id"],
        ] {
            let verb = typed(words).unwrap().verb;
            assert!(matches!(verb, Verb::Checkpoint(_) | Verb::Restore(_)));
        }
    }

    #[test]
    fn kill_as_engines_call_it() {
        let kill = |words: &[&str]| match typed(words).unwrap().verb {
            Verb::Kill { all, id, signal } => (all, id, signal.unwrap_or_default()),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kill(&["kill", "--all", "a", "9"]),
            (true, "a".into(), "9".into())
        );
        assert_eq!(
            kill(&["kill", "a", "KILL"]),
            (false, "a".into(), "KILL".into())
        );
        assert_eq!(kill(&["kill", "a"]), (false, "a".into(), String::new()));
        assert_eq!(kill(&["kill", "-a", "a", "-1"]).2, "-1");
    }

    #[test]
    fn version_has_runcs_lines() {
        for flag in ["--version", "-v"] {
            let text = typed(&[flag]).unwrap_err().to_string();
            assert!(text.starts_with("vmrun version "), "{text}");
            assert!(text.contains("\nspec: 1.3.0\n"), "{text}");
        }
    }
}
