//! Small static programs for the guest, made from the sources in `tests/guest`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/guest")
        .join(name)
}

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn make(command: &mut Command, program: &Path) -> PathBuf {
    // Several tests want the same one, at the same place.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let made = command.arg("-o").arg(program).output().expect("a compiler");
    let errors = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{program:?}: {errors}");
    program.to_owned()
}

/// The program in `tests/guest/NAME.rs`.
pub fn compiled(name: &str) -> PathBuf {
    let mut command = Command::new("rustc");
    command.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
    ]);
    command.arg(source(&format!("{name}.rs")));
    make(&mut command, &folder().join(name))
}

/// The program in `tests/guest/NAME.S` with these definitions.
pub fn assembled(name: &str, definitions: &[&str]) -> PathBuf {
    let program = folder().join(format!("{name}{}", definitions.join("")));
    let mut command = Command::new("cc");
    command.args(["-nostdlib", "-static", "-Wl,--build-id=none"]);
    command.args(definitions).arg(source(&format!("{name}.S")));
    make(&mut command, &program)
}
