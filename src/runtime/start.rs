//! The machine of a container: goes on from a template where one fits, else boots.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmrun_vm::machine::RunningMachine;
use vmrun_vm::spec::{BootProtocol, FsExport, MachineSpec};
use vmrun_vm::trace::Timeline;

use crate::control::Control;
use crate::error::chain;
use crate::guest_image::GuestImage;
use crate::machine::{self, HostKind};
use crate::plan::{AskedShape, Shape};
use crate::template::{self, Found, Origin, Unavailable, Wanted, Workshop};
use crate::{Error, template::TemplateUse};

/// What was decided about a machine.
#[derive(Debug, Clone, Default)]
pub struct MachineRequest {
    /// Its size.
    pub shape: AskedShape,
    /// Folder of the guest image.
    pub guest_dir: PathBuf,
    /// Another kernel than the image's.
    pub kernel: Option<PathBuf>,
    /// Another initramfs than the image's.
    pub initramfs: Option<PathBuf>,
    /// Further parameters of the guest kernel.
    pub kernel_params: Vec<String>,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// File for the guest's console.
    pub console: Option<PathBuf>,
    /// File for the guest's early serial console.
    pub serial: Option<PathBuf>,
    /// File for samples of what the guest does.
    pub profile: Option<PathBuf>,
    /// Which templates to use; none to boot.
    pub templates: Option<TemplateUse>,
}

impl MachineRequest {
    /// Whether the machine is to be another than those of templates.
    pub fn changes_machine(&self) -> bool {
        let files = [&self.kernel, &self.initramfs, &self.console, &self.serial];
        files.iter().any(|file| file.is_some())
            || !self.kernel_params.is_empty()
            || self.boot_protocol != BootProtocol::default()
    }
}

/// What a machine is started with.
pub struct Start<'a> {
    /// What was asked for.
    pub request: &'a MachineRequest,
    /// Size of the machine.
    pub shape: Shape,
    /// What it boots.
    pub image: GuestImage,
    /// Where.
    pub host: HostKind,
    /// For making a template.
    pub workshop: Workshop<'a>,
    /// Of the start.
    pub timeline: &'a Timeline,
}

/// A machine whose agent is about to connect to `control`.
pub struct Started {
    /// The machine. Dropping it stops it.
    pub machine: RunningMachine,
    /// The agent's connection.
    pub control: Control,
    /// Of its template.
    pub origin: Option<Origin>,
}

impl Start<'_> {
    /// Starts the machine. A template that cannot be had or used is worth a
    /// warning, and costs the time of a boot.
    pub fn machine(&self, exports: Vec<FsExport>) -> Result<Started, Error> {
        let Some(found) = self.template()? else {
            return self.boot(exports);
        };
        self.timeline.mark("template found");
        let spare = copied(&exports)?;
        let name = found.name.clone();
        match self.restore(found, exports) {
            Err(error @ Error::Machine(_)) => {
                let why = chain(&error);
                let line = format!("template {name} cannot be used, booting instead: {why}");
                self.workshop.notices.warn(&line);
                let booted = self.boot(spare)?;
                // So it is the template's fault, and the next start makes another.
                self.discard(&name);
                Ok(booted)
            }
            result => result,
        }
    }

    fn discard(&self, name: &str) {
        let Some(folder) = self.usage().and_then(|usage| usage.folder.as_deref()) else {
            return;
        };
        if let Err(error) = template::upkeep::remove(folder, name) {
            log::debug!("template {name} is not removed: {}", chain(&error));
        }
    }

    fn template(&self) -> Result<Option<Found>, Error> {
        let Some(usage) = self.usage() else {
            return Ok(None);
        };
        let wanted = Wanted {
            shape: self.shape,
            image: &self.image,
            host: self.host,
        };
        match template::obtain(usage, wanted, self.workshop) {
            Ok(found) => Ok(Some(found)),
            Err(Unavailable::Start(error @ Error::Interrupted(_))) => Err(error),
            // If the guest is at fault, the boot will tell.
            Err(error) => {
                let line = format!("booting without a template: {}", chain(&error));
                self.workshop.notices.warn(&line);
                Ok(None)
            }
        }
    }

    /// What is for debugging changes the machine or what it boots.
    fn usage(&self) -> Option<&TemplateUse> {
        let usage = self.request.templates.as_ref();
        usage.filter(|_| !self.request.changes_machine())
    }

    fn boot(&self, exports: Vec<FsExport>) -> Result<Started, Error> {
        let (control, agent_end) = connection()?;
        let mut spec = self.spec(exports, agent_end)?;
        let request = self.request;
        spec.boot_protocol = request.boot_protocol;
        spec.kernel_params.clone_from(&request.kernel_params);
        spec.console = output(&request.console)?;
        spec.serial = output(&request.serial)?;
        Ok(Started {
            machine: machine::boot(spec, self.host, self.timeline)?,
            control,
            origin: None,
        })
    }

    fn restore(&self, found: Found, exports: Vec<FsExport>) -> Result<Started, Error> {
        let (control, agent_end) = connection()?;
        let spec = self.spec(exports, agent_end)?;
        let (template, origin) = found.split();
        Ok(Started {
            machine: machine::restore(template, spec, self.host, self.timeline)?,
            control,
            origin: Some(origin),
        })
    }

    fn spec(&self, exports: Vec<FsExport>, agent_end: UnixStream) -> Result<MachineSpec, Error> {
        let mut spec = machine::spec(self.shape, self.image.clone(), exports, agent_end)?;
        spec.profile = output(&self.request.profile)?;
        Ok(spec)
    }
}

fn connection() -> Result<(Control, UnixStream), Error> {
    let (control, agent_end) = UnixStream::pair().map_err(Error::host("make a socket"))?;
    let control = Control::new(control).map_err(Error::host("make a socket"))?;
    Ok((control, agent_end))
}

fn copied(exports: &[FsExport]) -> Result<Vec<FsExport>, Error> {
    let copy = |export: &FsExport| {
        Ok(FsExport {
            name: export.name.clone(),
            source: export.source.try_clone()?,
            read_only: export.read_only,
            live: export.live,
        })
    };
    let copies: std::io::Result<_> = exports.iter().map(copy).collect();
    copies.map_err(Error::host("copy a descriptor"))
}

fn output(path: &Option<PathBuf>) -> Result<Option<File>, Error> {
    path.as_deref().map(create).transpose()
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|source| Error::Output {
        path: path.to_owned(),
        source,
    })
}
