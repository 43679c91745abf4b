//! What engines do that a runtime whose containers are machines trips over.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::harness::{Bundle, Container, Launch, Runtime, template_dir};

/// A container of its own for each runtime.
fn by_both(bundle: impl Fn() -> Bundle, case: impl Fn(&Container)) {
    for runtime in Runtime::ALL {
        case(&Container::new(runtime, bundle()));
    }
}

fn waiting() -> Bundle {
    Bundle::shell("sleep 1000")
}

fn create(container: &Container) -> Launch {
    let bundle = container.bundle().path().to_str().unwrap().to_owned();
    let create = container.verb(&["create", "--bundle", &bundle, container.id()]);
    let errors = container.path("errors");
    create.stdout(Stdio::null()).detached_stderr(&errors)
}

fn seen(container: &Container, path: &str) -> String {
    container
        .exec(&[], &format!("cat {path}"))
        .finish()
        .success()
        .out()
}

/// Shims have the kernel kill what they start when they end (PR_SET_PDEATHSIG, which
/// looks at the thread): the container stays.
#[test]
fn whoever_calls_create_may_end() {
    by_both(waiting, |container| {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| create(container).finish().success());
            thread.join().unwrap();
        });
        assert_eq!(container.state()["status"], "created");
        container.done(&["start", container.id()]).success();
        assert_eq!(container.state()["status"], "running");
    });
}

/// podman gives a runtime no variables at all.
#[test]
fn an_empty_environment() {
    let container = Container::new(Runtime::Vmrun, waiting());
    let templates = template_dir().to_str().unwrap().to_owned();
    let bundle = container.bundle().path().to_str().unwrap().to_owned();
    let bare = |words: &[&str]| {
        let words = [&["--template-dir", &templates], words].concat();
        let verb = container.verb(&words).by_shell("exec env -i \"$@\"");
        verb.stdout(Stdio::null())
            .detached_stderr(&container.path("errors"))
            .finish()
            .success()
    };
    bare(&["create", "--bundle", &bundle, container.id()]);
    bare(&["start", container.id()]);
    assert_eq!(container.state()["status"], "running");
    bare(&["delete", "--force", container.id()]);
}

/// Docker writes /etc/hosts and /etc/resolv.conf anew after it has created the
/// container, and while it runs.
#[test]
fn a_file_that_is_bound_in_stays_live() {
    let host = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| fs::write(host.path(), text).unwrap();
    let bundle = || {
        waiting().mount(json!({"destination": "/etc/hosts", "type": "bind",
            "source": host.path(), "options": ["bind", "rprivate"]}))
    };
    by_both(bundle, |container| {
        write("before create\n");
        create(container).finish().success();
        write("after create: longer\n");
        container.done(&["start", container.id()]).success();
        assert_eq!(seen(container, "/etc/hosts"), "after create: longer\n");
        write("running\n");
        assert_eq!(seen(container, "/etc/hosts"), "running\n");
    });
}

/// Engines put them there by default; the guest's kernel has neither.
#[test]
fn labels_of_selinux_and_apparmor_are_no_reason_to_fail() {
    let bundle = Bundle::shell("echo up")
        .with(
            "/process/selinuxLabel",
            json!("system_u:system_r:container_t:s0"),
        )
        .with("/process/apparmorProfile", json!("docker-default"))
        .with(
            "/linux/mountLabel",
            json!("system_u:object_r:container_file_t:s0"),
        );
    let container = Container::new(Runtime::Vmrun, bundle);
    let path = container.bundle().path().to_str().unwrap().to_owned();
    let log = container.path("log").to_str().unwrap().to_owned();
    let words = ["--log", &log, "run", "--bundle", &path, container.id()];
    let run = container.done(&words).success();
    assert_eq!(run.out(), "up\n");
    let log = fs::read_to_string(&log).unwrap();
    for property in ["process.selinuxLabel", "process.apparmorProfile"] {
        assert!(log.contains(property), "{log}");
    }
}

/// Neither what an image holds nor an annotation chooses a machine (CVE-2025-24965
/// was a runtime that read its settings from the image).
#[test]
fn images_and_annotations_choose_no_machine() {
    let bundle = Bundle::shell("uname -s; cat /.krun_vm.json").with(
        "/annotations",
        json!({"io.katacontainers.config.hypervisor.kernel": "/nowhere",
            "run.oci.handler": "krun", "krun.ram_mib": "1", "vmrun.kernel": "/nowhere"}),
    );
    let settings = r#"{"cpus": 64, "ram_mib": 1}"#;
    fs::write(bundle.rootfs().join(".krun_vm.json"), settings).unwrap();
    let run = Runtime::Vmrun.run(&bundle).success();
    assert_eq!(run.out(), format!("Linux\n{settings}"));
}
