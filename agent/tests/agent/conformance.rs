//! The MIB as Net-SNMP's tools see it, with its names.

use std::{path::PathBuf, process::Command};

use patchlab_protocol::{Digest, document::RunState, mib};

use super::{
    host::{Host, missing},
    manager::{Manager, oid},
};

/// Options by which the tools know the MIB's names, from the files of the project alone.
fn names() -> Vec<String> {
    let mibs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("protocol/mibs");
    let folders = format!("{0}:{0}/base", mibs.display());
    ["-M", &folders, "-m", "PATCHLAB-MIB"].map(str::to_owned).to_vec()
}

fn said(manager: &Manager, tool: &str, options: &[&str], arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(manager.credentials())
        .args(names())
        .args(options)
        .arg(manager.address.to_string())
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A host with a refused run in row 7.
fn host_with_a_run() -> Host {
    let host = Host::new();
    let manager = host.deployer();
    manager.create(7, &host.uri, [Some(Digest::of("nobody has this")), None, None, None]).unwrap();
    manager.start(7, 3).unwrap();
    assert_eq!(manager.wait(7, 3), RunState::Refused);
    host
}

#[test]
fn every_object_has_a_name_that_leads_back_to_it() {
    if missing() {
        return;
    }
    let host = host_with_a_run();
    let manager = host.monitor();
    let numbers = said(&manager, "snmpwalk", &["-Onq"], &[&oid(mib::MIB, &[])]);
    let objects: Vec<&str> =
        numbers.lines().filter_map(|line| line.split(' ').next()).filter(|word| word.starts_with('.')).collect();
    assert!(objects.len() > 40, "{numbers}");
    for object in objects {
        let translate = |option: &str, what: &str| {
            let output = Command::new("snmptranslate").args(names()).args([option, what]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let name = translate("-OS", object);
        assert!(name.starts_with("PATCHLAB-MIB::pl"), "{object} is {name}");
        assert_eq!(translate("-On", &name), object);
    }
}

#[test]
fn get_next_and_get_bulk_see_the_same_objects_and_get_finds_each() {
    if missing() {
        return;
    }
    let host = host_with_a_run();
    let manager = host.monitor();
    // Durations go on, so values of a second walk may differ: what is compared is which objects there are.
    let walk = |tool: &str, options: &[&str]| {
        let text = said(&manager, tool, &[options, &["-Onq"]].concat(), &[&oid(mib::OBJECTS, &[])]);
        let objects = text.lines().filter(|line| line.starts_with(".1.3")).map(|line| line.split(' ').next());
        objects.flatten().map(str::to_owned).collect::<Vec<_>>()
    };
    let one_by_one = walk("snmpwalk", &[]);
    for repetitions in ["-Cr1", "-Cr7", "-Cr50"] {
        assert_eq!(walk("snmpbulkwalk", &[repetitions]), one_by_one, "{repetitions}");
    }
    for object in &one_by_one {
        assert!(said(&manager, "snmpget", &["-Onq"], &[object]).starts_with(object.as_str()), "{object}");
    }
    let beside = said(&manager, "snmpget", &["-Onq"], &[&oid(mib::order::ENTRY, &[mib::order::DIGEST, 8])]);
    assert!(beside.contains("No Such Instance"), "{beside}");
    let nowhere = said(&manager, "snmpget", &["-Onq"], &[".1.3.6.1.2.1.99.1.0"]);
    assert!(nowhere.contains("No Such Object"), "{nowhere}");
}

#[test]
fn tables_and_enumerations_print_by_name() {
    if missing() {
        return;
    }
    let host = host_with_a_run();
    let manager = host.monitor();
    let table = said(&manager, "snmptable", &["-Ci", "-CB", "-Cf", "|"], &["PATCHLAB-MIB::plRunTable"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('|').collect()).collect();
    let header = rows.iter().position(|row| row.contains(&"plRunState")).unwrap_or_else(|| panic!("{table}"));
    let cell = |name: &str| {
        let column =
            rows[header].iter().position(|word| word.trim() == name).unwrap_or_else(|| panic!("{name}: {table}"));
        rows[header + 1][column].trim().to_owned()
    };
    assert_eq!([cell("index"), cell("plRunState"), cell("plRunRefusal")], ["7.3", "refused", "preflight"]);
    assert_eq!(cell("plRunRebootNeeded"), "false");

    let by_name =
        said(&manager, "snmpget", &["-OsQ"], &["PATCHLAB-MIB::plOrderState.7", "PATCHLAB-MIB::plOrderRowStatus.7"]);
    assert_eq!(by_name, "plOrderState.7 = refused\nplOrderRowStatus.7 = active\n");
    let deployer = host.deployer();
    let set = ["PATCHLAB-MIB::plOrderRowStatus.9", "i", "createAndWait"];
    let output = Command::new("snmpset")
        .args(deployer.credentials())
        .args(names())
        .arg(deployer.address.to_string())
        .args(set)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrongValue"), "{output:?}");
}
