//! What was decided: every default is applied here.

use std::path::PathBuf;
use std::time::Duration;

use vmrun_runtime::plan::AskedShape;
use vmrun_runtime::state;
use vmrun_runtime::template::{self, CreateRequest, TemplateUse};
use vmrun_runtime::update::Limits;
use vmrun_runtime::{BootProtocol, RunRequest, guest_image};

use super::args::{self, Args, Globals, ListFormat, LogFormat, RunArgs, TemplateVerb, Verb};
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
    Check {
        json: bool,
        guest_dir: PathBuf,
    },
    CreateTemplate(CreateRequest),
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
        } => Action::CreateTemplate(CreateRequest {
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
    let bundle = match (run.bundle, run.target) {
        (Some(bundle), id) => {
            if let Some(id) = id {
                check_id(&id.to_string_lossy())?;
            }
            bundle
        }
        (None, Some(target)) => target.into(),
        (None, None) => return Err(UsageError::new("no bundle")),
    };
    let templates = (!run.no_template).then(|| TemplateUse {
        folder: template_folder(globals),
        pool: run.template_pool,
    });
    let debugging = run.debugging;
    let request = RunRequest {
        bundle,
        shape: asked(&run.shape),
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
    };
    Ok(Action::Run {
        request: Box::new(request),
        trace: run.trace,
    })
}

/// Ids are names of folders later; runc takes the same characters.
fn check_id(id: &str) -> Result<(), UsageError> {
    const MAX_BYTES: usize = 255;
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    if id.is_empty() || id == "." || id == ".." || id.len() > MAX_BYTES || !id.bytes().all(known) {
        let shown: String = id.chars().take(40).collect();
        return Err(UsageError::new(format!("{shown:?} is not a container id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn decided(words: &[&str]) -> Result<Settings, String> {
        let argv = ["vmrun"].iter().chain(words).map(|w| (*w).into()).collect();
        let args = args::parse(argv, |_| false).map_err(|e| args::one_line(&e))?;
        Settings::decide(args).map_err(|e| e.to_string())
    }

    fn request(words: &[&str]) -> RunRequest {
        match decided(words).unwrap().action {
            Action::Run { request, .. } => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let request = request(&["--guest-dir", "/g", "run", "b"]);
        assert_eq!(request.bundle, Path::new("b"));
        assert_eq!(request.guest_dir, Path::new("/g"));
        assert_eq!(request.shape, AskedShape::default());
        assert_eq!(request.boot_protocol, BootProtocol::Linux64);
        assert_eq!(request.console, None);
        assert!(!request.changes_machine());
        assert_eq!(request.templates.unwrap().pool, 1);
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
        assert_eq!(request.shape.mem_size_mib, Some(1024));
        assert_eq!(request.shape.vcpu_count, Some(2));
        assert_eq!(request.kernel_params, ["a", "b=c"]);
        assert_eq!(request.boot_protocol, BootProtocol::Pvh);
        assert_eq!(request.serial, Some("/s".into()));
        assert!(request.changes_machine());
    }

    #[test]
    fn templates() {
        let request = |words: &[&str]| request(&[words, &["b"]].concat()).templates;
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
    fn ids() {
        let long = "x".repeat(256);
        for id in ["a/b", "..", "", "a b", "é", long.as_str()] {
            let error = decided(&["run", "--bundle", "/b", id]).unwrap_err();
            assert!(error.ends_with("is not a container id"), "{error}");
        }
        assert!(decided(&["run", "--bundle", "/b"]).is_ok());
    }
}
