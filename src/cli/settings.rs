//! What was decided: every default is applied here.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmrun_runtime::host_cgroup::{Driver, MEMORY_OVERHEAD_MIB};
use vmrun_runtime::plan::AskedShape;
use vmrun_runtime::state;
use vmrun_runtime::template::{self, TemplateUse};
use vmrun_runtime::update::Limits;
use vmrun_runtime::{BootProtocol, CreateRequest, MachineRequest, RunRequest, guest_image};

use super::args::{
    self, Args, ContainerArgs, CreateArgs, Globals, ListFormat, LogFormat, RunArgs, TemplateVerb,
    Verb,
};
use super::exec::ExecArgs;

/// The command line cannot be meant.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    pub fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole command.
#[derive(Debug)]
pub struct Settings {
    pub log: LogSettings,
    pub action: Action,
}

/// Where log lines go.
#[derive(Debug)]
pub struct LogSettings {
    /// `None` is stderr with `debug`, and nowhere without.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    pub debug: bool,
}

/// A container that is to exist.
#[derive(Debug, PartialEq, Eq)]
pub struct Of {
    /// Folder of all containers.
    pub root: PathBuf,
    pub id: String,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    Run {
        request: Box<RunRequest>,
        trace: Option<PathBuf>,
    },
    Exec {
        args: Box<ExecArgs>,
        root: PathBuf,
    },
    Ps {
        of: Of,
        format: ListFormat,
    },
    Pause(Of),
    Resume(Of),
    Update {
        of: Of,
        limits: Limits,
    },
    Events {
        of: Of,
        /// Once if there is none.
        every: Option<Duration>,
    },
    Create(Box<CreateRequest>),
    Start(Of),
    State(Of),
    Kill {
        of: Of,
        signal: String,
        all: bool,
    },
    Delete {
        of: Of,
        force: bool,
    },
    List {
        root: PathBuf,
        format: String,
        quiet: bool,
    },
    Unsupported(&'static str),
    Check {
        json: bool,
        guest_dir: PathBuf,
    },
    Features,
    Spec {
        bundle: PathBuf,
        rootless: bool,
    },
    Explain {
        bundle: PathBuf,
    },
    CreateTemplate(template::CreateRequest),
    ListTemplates {
        folder: PathBuf,
        format: ListFormat,
    },
    RemoveTemplates {
        folder: PathBuf,
        keys: Vec<String>,
    },
    PruneTemplates {
        folder: PathBuf,
        all: bool,
    },
}

impl Settings {
    /// Decides what `args` mean.
    pub fn decide(args: Args) -> Result<Self, UsageError> {
        let globals = args.globals;
        let action = match args.verb {
            Verb::Run(run) => decide_run(*run, &globals)?,
            Verb::Create(create) => decide_create(*create, &globals)?,
            Verb::Start { id } => Action::Start(of(id, &globals)),
            Verb::State { id } => Action::State(of(id, &globals)),
            Verb::Kill { all, id, signal } => Action::Kill {
                of: of(id, &globals),
                signal: signal.unwrap_or_default(),
                all,
            },
            Verb::Delete { force, id } => Action::Delete {
                of: of(id, &globals),
                force,
            },
            Verb::List { format, quiet } => Action::List {
                root: state_folder(&globals),
                format,
                quiet,
            },
            Verb::Checkpoint(_) => Action::Unsupported("checkpoint"),
            Verb::Restore(_) => Action::Unsupported("restore"),
            Verb::Template(verb) => decide_template(verb, &globals)?,
            Verb::Exec(args) => Action::Exec {
                args,
                root: state_folder(&globals),
            },
            Verb::Ps(args) => Action::Ps {
                of: of(args.id(), &globals),
                format: args.format,
            },
            Verb::Pause { id } => Action::Pause(of(id, &globals)),
            Verb::Resume { id } => Action::Resume(of(id, &globals)),
            Verb::Update(args) => Action::Update {
                of: of(args.id.clone(), &globals),
                limits: args.limits(),
            },
            Verb::Events(args) => Action::Events {
                of: of(args.id, &globals),
                every: (!args.stats).then_some(args.interval),
            },
            Verb::Check { json } => Action::Check {
                json,
                guest_dir: guest_dir(&globals),
            },
            Verb::Features => Action::Features,
            Verb::Spec { bundle } => Action::Spec {
                bundle,
                rootless: globals.rootless.as_deref() == Some("true"),
            },
            Verb::Explain { bundle } => Action::Explain { bundle },
            Verb::Other(_) => return Err(UsageError::new("no command")),
        };
        Ok(Self {
            log: LogSettings {
                file: globals.log,
                format: globals.log_format,
                debug: globals.debug,
            },
            action,
        })
    }
}

fn of(id: String, globals: &Globals) -> Of {
    Of {
        root: state_folder(globals),
        id,
    }
}

fn state_folder(globals: &Globals) -> PathBuf {
    state::own_folder(globals.root.as_deref())
}

fn guest_dir(globals: &Globals) -> PathBuf {
    let variable = std::env::var_os(guest_image::GUEST_DIR_VARIABLE);
    guest_image::folder(globals.guest_dir.as_deref(), variable)
}

fn template_folder(globals: &Globals) -> Option<PathBuf> {
    let is_root = template::is_root();
    template::folder(globals.template_dir.as_deref(), is_root, |name| {
        std::env::var_os(name)
    })
}

fn decide_template(verb: TemplateVerb, globals: &Globals) -> Result<Action, UsageError> {
    let folder = template_folder(globals)
        .ok_or_else(|| UsageError::new("no folder for templates: --template-dir"))?;
    Ok(match verb {
        TemplateVerb::Create {
            shape,
            template_pool,
        } => Action::CreateTemplate(template::CreateRequest {
            shape: asked(&shape),
            guest_dir: guest_dir(globals),
            templates: TemplateUse {
                folder: Some(folder),
                pool: template_pool,
            },
        }),
        TemplateVerb::List { format } => Action::ListTemplates { folder, format },
        TemplateVerb::Rm { keys } => Action::RemoveTemplates { folder, keys },
        TemplateVerb::Prune { all } => Action::PruneTemplates { folder, all },
    })
}

fn asked(shape: &args::Shape) -> AskedShape {
    AskedShape {
        mem_size_mib: shape.memory,
        vcpu_count: shape.cpus,
    }
}

fn decide_run(run: RunArgs, globals: &Globals) -> Result<Action, UsageError> {
    let named = run.container.bundle.clone();
    let (bundle, id) = bundle_and_id(named, run.target.as_deref(), Path::is_dir, Path::is_file)?;
    let create = container(run.container, bundle, id, globals)?;
    let request = RunRequest {
        create,
        detach: run.detach,
        keep: run.keep,
    };
    Ok(Action::Run {
        request: Box::new(request),
        trace: run.trace,
    })
}

fn decide_create(create: CreateArgs, globals: &Globals) -> Result<Action, UsageError> {
    let bundle = create.container.bundle.clone();
    let bundle = bundle.unwrap_or_else(|| HERE.into());
    let request = container(create.container, bundle, Some(create.id), globals)?;
    Ok(Action::Create(Box::new(request)))
}

/// Where runc looks for a bundle.
const HERE: &str = ".";

/// What `run` runs: its one word is an id, as runc has it, where a bundle is named or
/// is right here; else it is the bundle.
fn bundle_and_id(
    bundle: Option<PathBuf>,
    word: Option<&OsStr>,
    is_dir: fn(&Path) -> bool,
    is_file: fn(&Path) -> bool,
) -> Result<(PathBuf, Option<String>), UsageError> {
    let id = |word: &OsStr| word.to_string_lossy().into_owned();
    match (bundle, word) {
        (Some(bundle), word) => Ok((bundle, word.map(id))),
        (None, Some(word)) => {
            let names_folder = word.as_encoded_bytes().contains(&b'/') || is_dir(Path::new(word));
            if !names_folder && is_file(&Path::new(HERE).join("config.json")) {
                return Ok((HERE.into(), Some(id(word))));
            }
            Ok((word.into(), None))
        }
        (None, None) => Err(UsageError::new("no bundle")),
    }
}

/// How systemd passes listening sockets on, sd_listen_fds(3).
const SOCKET_ACTIVATION: &str = "LISTEN_FDS";

fn container(
    args: ContainerArgs,
    bundle: PathBuf,
    id: Option<String>,
    globals: &Globals,
) -> Result<CreateRequest, UsageError> {
    if args.preserve_fds > 0 {
        let problem = "--preserve-fds: descriptors of the host cannot be passed into a machine";
        return Err(UsageError::new(problem));
    }
    if std::env::var_os(SOCKET_ACTIVATION).is_some() {
        log::warn!("{SOCKET_ACTIVATION} is ignored: sockets of the host stay there");
    }
    let templates = (!args.no_template).then(|| TemplateUse {
        folder: template_folder(globals),
        pool: args.template_pool,
    });
    Ok(CreateRequest {
        bundle,
        root: state_folder(globals),
        id,
        machine: machine(args.debugging, asked(&args.shape), templates, globals),
        driver: if globals.systemd_cgroup {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        },
        overhead_mib: args.memory_overhead.unwrap_or(MEMORY_OVERHEAD_MIB),
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pid_file: args.pid_file,
    })
}

fn machine(
    debugging: args::Debugging,
    shape: AskedShape,
    templates: Option<TemplateUse>,
    globals: &Globals,
) -> MachineRequest {
    MachineRequest {
        shape,
        guest_dir: guest_dir(globals),
        templates,
        kernel: debugging.kernel,
        initramfs: debugging.initramfs,
        kernel_params: debugging.kernel_param,
        boot_protocol: match debugging.boot_protocol {
            args::BootProtocol::Linux64 => BootProtocol::Linux64,
            args::BootProtocol::Pvh => BootProtocol::Pvh,
        },
        console: debugging.console,
        serial: debugging.serial,
        profile: debugging.profile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(words: &[&str]) -> Result<Settings, String> {
        let argv = ["vmrun"].iter().chain(words).map(|w| (*w).into()).collect();
        let args = args::parse(argv, |_| false).map_err(|e| args::one_line(&e))?;
        Settings::decide(args).map_err(|e| e.to_string())
    }

    fn request(words: &[&str]) -> CreateRequest {
        match decided(words).unwrap().action {
            Action::Run { request, .. } => request.create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let request = request(&["--guest-dir", "/g", "run", "b"]);
        assert_eq!(request.bundle, Path::new("b"));
        assert_eq!(request.id, None);
        assert_eq!(request.overhead_mib, MEMORY_OVERHEAD_MIB);
        let machine = request.machine;
        assert_eq!(machine.guest_dir, Path::new("/g"));
        assert_eq!(machine.shape, AskedShape::default());
        assert_eq!(machine.boot_protocol, BootProtocol::Linux64);
        assert_eq!(machine.console, None);
        assert!(!machine.changes_machine());
        assert_eq!(machine.templates.unwrap().pool, 1);
    }

    #[test]
    fn flags() {
        let request = request(&[
            "run",
            "--memory",
            "1g",
            "--cpus",
            "2",
            "--kernel-param",
            "a",
            "--kernel-param",
            "b=c",
            "--boot-protocol",
            "pvh",
            "--serial",
            "/s",
            "--bundle",
            "/b",
            "my-id.1",
        ]);
        assert_eq!(request.bundle, Path::new("/b"));
        assert_eq!(request.id.as_deref(), Some("my-id.1"));
        let request = request.machine;
        assert_eq!(request.shape.mem_size_mib, Some(1024));
        assert_eq!(request.shape.vcpu_count, Some(2));
        assert_eq!(request.kernel_params, ["a", "b=c"]);
        assert_eq!(request.boot_protocol, BootProtocol::Pvh);
        assert_eq!(request.serial, Some("/s".into()));
        assert!(request.changes_machine());
    }

    #[test]
    fn spec_takes_the_flag_of_every_verb() {
        let rootless = |words: &[&str]| match decided(words).unwrap().action {
            Action::Spec { rootless, .. } => rootless,
            other => panic!("{other:?}"),
        };
        assert!(!rootless(&["spec"]));
        assert!(!rootless(&["--rootless=false", "spec"]));
        assert!(rootless(&["spec", "--rootless"]));
    }

    #[test]
    fn templates() {
        let request = |words: &[&str]| request(&[words, &["b"]].concat()).machine.templates;
        assert_eq!(request(&["run", "--no-template"]), None);
        let pool = ["--template-dir", "/t", "run", "--template-pool", "3"];
        let usage = request(&pool).unwrap();
        assert_eq!(usage.folder, Some("/t".into()));
        assert_eq!(usage.pool, 3);
        let words = ["template", "rm", "a", "b", "--template-dir", "/t"];
        let Action::RemoveTemplates { folder, keys } = decided(&words).unwrap().action else {
            panic!("not a removal");
        };
        assert_eq!((folder, keys), ("/t".into(), vec!["a".into(), "b".into()]));
    }

    #[test]
    fn what_the_word_of_run_is() {
        let meant = |bundle: Option<&str>, word: &str, here: fn(&Path) -> bool| {
            let is_dir = |path: &Path| path == Path::new("folder");
            let bundle = bundle.map(PathBuf::from);
            bundle_and_id(bundle, Some(word.as_ref()), is_dir, here).unwrap()
        };
        let bundle = |path: &str| (PathBuf::from(path), None);
        let id = |path: &str, id: &str| (PathBuf::from(path), Some(id.to_owned()));
        assert_eq!(meant(Some("/b"), "x", |_| false), id("/b", "x"));
        assert_eq!(meant(None, "x", |_| true), id(".", "x"));
        assert_eq!(meant(None, "x", |_| false), bundle("x"));
        assert_eq!(meant(None, "folder", |_| true), bundle("folder"));
        assert_eq!(meant(None, "a/b", |_| true), bundle("a/b"));
    }

    #[test]
    fn descriptors_stay_on_the_host() {
        let create = |n| decided(&["create", "--preserve-fds", n, "id"]);
        assert!(create("0").is_ok());
        let problem = create("1").unwrap_err();
        assert!(problem.starts_with("--preserve-fds: "), "{problem}");
    }
}
