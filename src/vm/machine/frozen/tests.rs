//! Templates of small guests, on this machine's KVM.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::testing::{
    COUNTER, Folder, READ, TSC, build, counter, host, kernel, round, spec,
};
use crate::spec::FsExport;

fn number(machine: &Machine, address: u64) -> u64 {
    let memory = &machine.context.memory;
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn byte(machine: &Machine, address: u64) -> u8 {
    let memory = &machine.context.memory;
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn rounds(machine: &mut Machine, count: u8) {
    for value in 1..=count {
        round(&mut machine.vcpus[0], value);
    }
}

fn restore(folder: &Folder, spec: MachineSpec) -> Result<Machine, MachineError> {
    let template = folder.template()?;
    Machine::restore(template, spec, host(), &Timeline::new(Instant::now()))
}

fn refusal(result: Result<Machine, MachineError>) -> SnapshotError {
    match result.map(drop) {
        Err(MachineError::Snapshot(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// A template of a counter that is in its fifth round, with 5 to be read.
fn template(kernel: &tempfile::NamedTempFile) -> Folder {
    let folder = Folder::new();
    let mut machine = build(spec(kernel));
    rounds(&mut machine, 5);
    let vcpus = std::mem::take(&mut machine.vcpus);
    machine.write(vcpus, folder.open().as_fd()).unwrap();
    folder
}

fn await_ending(machine: &RunningMachine) -> Ending {
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let fd = machine.ended_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "it never ends");
    machine.ending().unwrap()
}

#[test]
fn two_machines_of_one_template_go_on_each_for_itself() {
    let kernel = kernel(&counter(1000));
    let folder = template(&kernel);
    let memory = fs::read(folder.0.path().join("memory")).unwrap();

    let mut one = restore(&folder, spec(&kernel)).unwrap();
    let mut other = restore(&folder, spec(&kernel)).unwrap();
    for machine in [&mut one, &mut other] {
        assert_eq!((number(machine, COUNTER), byte(machine, READ)), (5, 4));
        rounds(machine, 1);
        assert_eq!(number(machine, COUNTER), 6);
        assert_eq!(byte(machine, READ), 5, "what it read when it was frozen");
    }
    rounds(&mut one, 10);
    assert_eq!((number(&one, COUNTER), byte(&one, READ)), (16, 9));
    assert_eq!(number(&other, COUNTER), 6);
    rounds(&mut other, 3);
    assert_eq!((number(&other, COUNTER), byte(&other, READ)), (9, 2));
    assert_eq!(number(&one, COUNTER), 16);
    assert_eq!(fs::read(folder.0.path().join("memory")).unwrap(), memory);
}

#[test]
fn a_machine_frozen_while_it_runs_comes_to_its_end() {
    // More than it comes through before it is frozen.
    const ROUNDS: u32 = 50_000;
    let kernel = kernel(&counter(ROUNDS));
    let folder = Folder::new();
    let running = build(spec(&kernel)).resume().unwrap();
    running.freeze(folder.open().as_fd()).unwrap();
    for _ in 0..2 {
        let machine = restore(&folder, spec(&kernel)).unwrap();
        assert!(number(&machine, COUNTER) < u64::from(ROUNDS));
        let running = machine.resume().unwrap();
        assert_eq!(await_ending(&running), Ending::Reset);
        assert_eq!(number(&running.machine, COUNTER), u64::from(ROUNDS));
    }
}

#[test]
fn a_restored_machine_can_be_frozen_again() {
    let kernel = kernel(&counter(1000));
    let first = template(&kernel);
    let mut machine = restore(&first, spec(&kernel)).unwrap();
    rounds(&mut machine, 4);
    let vcpus = std::mem::take(&mut machine.vcpus);
    let second = Folder::new();
    machine.write(vcpus, second.open().as_fd()).unwrap();
    drop(first);
    let machine = restore(&second, spec(&kernel)).unwrap();
    assert_eq!(number(&machine, COUNTER), 9);
    // What only the first template had: the code, by which this comes to its end.
    assert_eq!(await_ending(&machine.resume().unwrap()), Ending::Reset);
}

#[test]
fn processors_that_wait_to_be_started_go_on_waiting() {
    let kernel = kernel(&counter(100));
    let two = || MachineSpec {
        vcpu_count: 2,
        ..spec(&kernel)
    };
    let folder = Folder::new();
    let mut machine = build(two());
    rounds(&mut machine, 5);
    let vcpus = std::mem::take(&mut machine.vcpus);
    machine.write(vcpus, folder.open().as_fd()).unwrap();
    let running = restore(&folder, two()).unwrap().resume().unwrap();
    assert_eq!(await_ending(&running), Ending::Reset);
    assert_eq!(number(&running.machine, COUNTER), 100);
}

#[test]
fn clocks_go_on_from_where_they_stopped() {
    // The host's own counter is days ahead: it must not be seen.
    const SOON: Duration = Duration::from_secs(60);
    let kernel = kernel(&counter(1000));
    let folder = template(&kernel);
    let mut machine = restore(&folder, spec(&kernel)).unwrap();
    let then = number(&machine, TSC);
    rounds(&mut machine, 2);
    let now = number(&machine, TSC);
    let khz = u64::from(machine.vcpus[0].get_tsc_khz().unwrap());
    assert!(then > 0 && now > then, "{then} {now}");
    assert!(now - then < khz * SOON.as_millis() as u64, "{then} {now}");
    let kvmclock = machine.vm.fd.get_clock().unwrap().clock;
    assert!(u128::from(kvmclock) < SOON.as_nanos(), "{kvmclock}");
}

#[test]
fn pages_that_were_touched_are_a_working_set() {
    let kernel = kernel(&counter(10));
    let folder = template(&kernel);
    assert!(folder.template().unwrap().working_set().is_none());
    let running = restore(&folder, spec(&kernel)).unwrap().resume().unwrap();
    await_ending(&running);
    let set = running.touched().unwrap();
    set.write(folder.open().as_fd()).unwrap();
    assert_eq!(folder.template().unwrap().working_set(), Some(&set));
    assert!(restore(&folder, spec(&kernel)).is_ok());

    let booted = build(spec(&kernel)).resume().unwrap();
    assert!(booted.touched().is_err());
}

#[test]
fn a_machine_of_another_shape_is_refused() {
    let kernel = kernel(&counter(1000));
    let folder = template(&kernel);
    let changes: [fn(&mut MachineSpec); 5] = [
        |spec| spec.mem_size_mib = 64,
        |spec| spec.vcpu_count = 2,
        |spec| spec.rng = false,
        |spec| spec.vsock = None,
        |spec| spec.serial = Some(tempfile::tempfile().unwrap()),
    ];
    for change in changes {
        let mut other = spec(&kernel);
        change(&mut other);
        let error = refusal(restore(&folder, other));
        assert!(matches!(error, SnapshotError::Misfit(_)), "{error}");
        assert!(error.is_unusable());
    }
    // As many devices, but others.
    let mut other = spec(&kernel);
    other.rng = false;
    other.console = Some(tempfile::tempfile().unwrap());
    let error = refusal(restore(&folder, other));
    assert!(matches!(error, SnapshotError::Devices(_)), "{error}");
    assert!(error.is_unusable());
}

#[test]
fn exports_of_the_machine_are_there_and_those_of_a_template_are_refused() {
    let kernel = kernel(&counter(1_000_000_000));
    let with_export = || {
        let mut spec = spec(&kernel);
        let source = std::fs::File::open("/").unwrap().into();
        spec.fs.as_mut().unwrap().exports.push(FsExport {
            name: "root".to_owned(),
            source,
            read_only: true,
            live: false,
        });
        spec
    };
    let folder = Folder::new();
    let running = build(with_export()).resume().unwrap();
    let error = running.freeze(folder.open().as_fd()).unwrap_err();
    assert!(matches!(error, SnapshotError::Device { device: "fs", .. }));
    assert!(!error.is_unusable());
    assert!(matches!(
        folder.template(),
        Err(SnapshotError::Missing { .. })
    ));

    let folder = template(&kernel);
    assert!(restore(&folder, with_export()).is_ok());
}

#[test]
fn a_machine_that_has_ended_is_not_frozen() {
    let kernel = kernel(&counter(1));
    let folder = Folder::new();
    let running = build(spec(&kernel)).resume().unwrap();
    await_ending(&running);
    let error = running.freeze(folder.open().as_fd()).unwrap_err();
    assert!(matches!(error, SnapshotError::Ended(Ending::Reset)));
}

#[test]
fn a_template_in_use_may_be_removed() {
    let kernel = kernel(&counter(100));
    let folder = template(&kernel);
    let machine = restore(&folder, spec(&kernel)).unwrap();
    drop(folder);
    assert_eq!(await_ending(&machine.resume().unwrap()), Ending::Reset);
}
