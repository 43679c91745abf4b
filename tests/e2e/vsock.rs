//! The host's end of vsock is the agent's alone.

use crate::harness::{Bundle, Runtime, compiled};

#[test]
fn a_container_cannot_reach_the_control_port() {
    let bundle = Bundle::program(&["/vsock"]).executable("vsock", &compiled("vsock"));
    let run = Runtime::Vmrun.run(&bundle).success();
    let refused = run.out().matches(": refused\n").count();
    assert_eq!(refused, 3, "{run:?}");
}
