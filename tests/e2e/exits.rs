//! Exit codes and signals.

use std::fs::{self, File};
use std::io::Read;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;

use crate::harness::{Bundle, Runtime, assembled};

#[test]
fn exit_codes_are_the_containers() {
    for code in [7, 255] {
        for runtime in Runtime::ALL {
            let bundle = Bundle::shell(&format!("exit {code}"));
            let run = runtime.run(&bundle);
            assert_eq!(run.code(), code, "{runtime:?}: {run:?}");
            assert_eq!(run.err(), "", "{runtime:?}");
        }
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    for runtime in Runtime::ALL {
        let bundle = Bundle::program(&["/fault"]).executable("fault", &assembled("fault", &[]));
        let run = runtime.run(&bundle);
        assert_eq!(run.code(), 128 + 4, "{runtime:?}: {run:?}");
        assert_eq!(run.err(), "", "{runtime:?}");
    }
}

#[test]
fn signals_reach_the_container() {
    // `wait` is what a shell runs traps in at once.
    let script = "for s in TERM INT HUP QUIT USR1; do trap \"echo got $s\" $s; done
        trap 'echo got USR2; exit 42' USR2
        sleep 1000 & echo ready
        while :; do wait $!; done";
    for runtime in Runtime::ALL {
        let bundle = Bundle::shell(script);
        let running = runtime.launch(&bundle).start();
        running.wait_for("ready");
        for (signal, name) in [
            (Signal::TERM, "TERM"),
            (Signal::INT, "INT"),
            (Signal::HUP, "HUP"),
            (Signal::QUIT, "QUIT"),
            (Signal::USR1, "USR1"),
            (Signal::USR2, "USR2"),
        ] {
            running.signal(signal);
            running.wait_for(&format!("got {name}\n"));
        }
        let run = running.finish();
        assert_eq!(run.code(), 42, "{runtime:?}: {run:?}");
    }
}

#[test]
fn a_signal_before_the_container_ends_the_start() {
    let bundle = Bundle::shell("echo started");
    let serial = bundle.path().join("serial");
    mkfifoat(CWD, &serial, Mode::RUSR | Mode::WUSR).unwrap();
    // A boot leaves time for a signal.
    let options = ["--no-template", "--serial", serial.to_str().unwrap()];
    let running = Runtime::Vmrun.launch_with(&bundle, &options).start();
    // The kernel's first words.
    let mut words = File::open(&serial).unwrap();
    words.read_exact(&mut [0]).unwrap();
    running.signal(Signal::TERM);
    let run = running.finish();
    assert_eq!(run.code(), 128 + 15, "{run:?}");
    assert_eq!(
        run.err(),
        "vmrun: ended by signal 15 before the container existed\n"
    );
}

#[test]
fn nothing_outlives_a_killed_vmrun() {
    let mark = format!("VMRUN_E2E_MARK={}", std::process::id());
    let (name, value) = mark.split_once('=').unwrap();
    let bundle = Bundle::shell("echo ready; sleep 1000");
    let running = Runtime::Vmrun.launch(&bundle).env(name, value).start();
    running.wait_for("ready");
    let marked = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let environments = processes.filter_map(|p| fs::read(p.path().join("environ")).ok());
        let has_mark = |e: &Vec<u8>| e.split(|b| *b == 0).any(|v| v == mark.as_bytes());
        environments.filter(has_mark).count()
    };
    assert_ne!(marked(), 0);
    running.signal(Signal::KILL);
    assert_eq!(running.finish().code(), -9);
    assert_eq!(marked(), 0);
}
