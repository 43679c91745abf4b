//! Vector registers survive being preempted: what the machine does for the kernel's
//! xsave and xrstor is right.

use crate::harness::{Bundle, Runtime, compiled};

#[test]
fn vector_registers_of_two_processes_do_not_mix() {
    let bundle = Bundle::program(&["/registers"]).executable("registers", &compiled("registers"));
    let run = Runtime::Vmrun.run(&bundle).success();
    println!("{}", run.out());
    assert!(run.out().ends_with("all sums are right\n"), "{run:?}");
}
