//! Capabilities and the flag against new ones. (validation: process_capabilities,
//! process_capabilities_fail; contest: process_capabilities,
//! process_capabilities_bounding, process_capabilities_fail, process noNewPrivileges)

use serde_json::json;

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    five_sets,
    no_capabilities,
    of_another_user,
    bounding_set_holds,
    unknown_capability,
    capabilities_count,
    no_new_privileges,
    new_privileges,
];

const SETS: &str = "grep ^Cap /proc/self/status | sed 's/Cap\\(...\\):.0*/\\1 /'";

fn five_sets(lab: &Lab) {
    let caps = json!({"bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_KILL"], "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]});
    // As another user, for whom exec does not fill the sets again.
    let bundle = Bundle::shell(SETS)
        .with("/process/capabilities", caps)
        .with("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(lab.output(bundle), "Inh 1\nPrm 1\nEff 1\nBnd a1\nAmb 1\n");
}

fn no_capabilities(lab: &Lab) {
    let bundle = Bundle::shell(SETS).with("/process/capabilities", json!({}));
    assert_eq!(lab.output(bundle), "Inh \nPrm \nEff \nBnd \nAmb \n");
}

fn of_another_user(lab: &Lab) {
    let bundle = Bundle::shell(SETS).with("/process/user", json!({"uid": 1000, "gid": 1000}));
    let seen = lab.output(bundle);
    assert!(
        seen.contains("Eff \n") && seen.contains("Bnd a80425fb\n"),
        "{seen}"
    );
}

fn bounding_set_holds(lab: &Lab) {
    let only = ["CAP_CHOWN"];
    let caps = json!({"bounding": only, "permitted": only, "effective": only});
    let script = "chown 1 /etc/group && echo may; mkdir /x; mknod /x/null c 1 3 2>&1; chroot / true 2>&1; true";
    let seen = lab.output(Bundle::shell(script).with("/process/capabilities", caps));
    assert!(seen.starts_with("may\n"), "{seen}");
    assert_eq!(seen.matches("Operation not permitted").count(), 2, "{seen}");
}

/// The specification wants no error that ends the start, only that it is not ignored.
fn unknown_capability(lab: &Lab) {
    let caps = json!({"bounding": ["CAP_NOSUCH"], "permitted": ["CAP_NOSUCH"], "effective": ["CAP_NOSUCH"]});
    let run = lab.run(Bundle::shell(SETS).with("/process/capabilities", caps));
    let said = run.err().contains("CAP_NOSUCH") || run.err().to_lowercase().contains("capabilit");
    assert!(
        said || run.code() == 0 && run.out().contains("Eff \n"),
        "{run:?}"
    );
}

fn capabilities_count(lab: &Lab) {
    let with = |caps: &[&str]| {
        Bundle::shell("chown 5 /etc/group 2>/dev/null && echo yes || echo no").with(
            "/process/capabilities",
            json!({"bounding": caps, "permitted": caps, "effective": caps}),
        )
    };
    assert_eq!(lab.output(with(&["CAP_CHOWN"])), "yes\n");
    assert_eq!(lab.output(with(&["CAP_KILL"])), "no\n");
}

fn no_new_privileges(lab: &Lab) {
    let bundle = Bundle::shell("grep NoNewPrivs /proc/self/status | cut -f 2")
        .with("/process/noNewPrivileges", json!(true));
    assert_eq!(lab.output(bundle), "1\n");
}

fn new_privileges(lab: &Lab) {
    let bundle = Bundle::shell("grep NoNewPrivs /proc/self/status | cut -f 2")
        .with("/process/noNewPrivileges", json!(false));
    assert_eq!(lab.output(bundle), "0\n");
}
