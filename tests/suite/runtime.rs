//! The runtimes that a suite is run with.

use std::path::{Path, PathBuf};

use super::Stage;

/// Those to run, separated by commas: `VMRUN_TEST_RUNTIMES`.
const ASKED: &str = "VMRUN_TEST_RUNTIMES";

/// A program that takes runc's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    pub name: String,
    pub program: PathBuf,
}

impl Runtime {
    /// Those that were asked for, else `default`.
    pub fn asked(stage: &Stage, default: &[&str]) -> Vec<Self> {
        let asked = std::env::var(ASKED).unwrap_or_else(|_| default.join(","));
        let names = asked.split(',').filter(|name| !name.is_empty());
        names.map(|name| Self::named(stage, name)).collect()
    }

    fn named(stage: &Stage, name: &str) -> Self {
        let wrapped = stage.program(name);
        let found = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
        let mut places = std::iter::once(wrapped).chain(found);
        let program = places.find(|path| path.exists());
        Self {
            program: program.unwrap_or_else(|| panic!("no runtime {name}")),
            name: name.to_owned(),
        }
    }

    /// Whether its containers are machines.
    pub fn is_vmrun(&self) -> bool {
        self.name == "vmrun"
    }
}
