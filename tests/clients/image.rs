//! The root file system that containers have, of Debian's static busybox.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Makes it in `root`.
pub fn fill(root: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for applet in list.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let users = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1000:\nmore:x:2000:app\n",
    )
    .unwrap();
    fs::write(root.join("etc/plain"), "not a program\n").unwrap();
    let garbage = root.join("bin/garbage");
    fs::write(&garbage, [0; 64]).unwrap();
    fs::set_permissions(&garbage, Permissions::from_mode(0o755)).unwrap();
}

/// The same as a tar archive.
pub fn archive(root: &Path, archive: &Path) {
    let mut command = Command::new("tar");
    command.arg("-C").arg(root).arg("-cf").arg(archive).arg(".");
    assert!(command.status().unwrap().success());
}
