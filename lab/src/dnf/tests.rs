use super::*;

fn package(name: &str, arch: &str, version: &str, beside: bool) -> Package {
    Package { name: name.into(), arch: arch.into(), version: version.into(), header: String::new(), beside }
}

#[test]
fn answers_of_rpm_become_packages() {
    let said = "web\tnoarch\t0\t1\t1\taa.bb\tweb config(web) \nkmod\tx86_64\t2\t1\t1\t(none).cc\tinstallonlypkg(kernel-module) \n\
                gpg-pubkey\t(none)\t0\t2ec\t6b0\t(none).(none)\tgpg(x) \n";
    let found = packages(said).unwrap();
    let names: Vec<_> = found.iter().map(|one| (one.order_name(), one.version.as_str())).collect();
    assert_eq!(names, [("kmod@2:1-1".into(), "2:1-1"), ("web".into(), "1-1")]);
    assert!(matches!(packages("web\tnoarch\n"), Err(DnfError::Unexpected(_))));
}

#[test]
fn a_transaction_is_what_differs() {
    let before = [
        package("kernel-core", "x86_64", "1-1", true),
        package("lib", "noarch", "1-1", false),
        package("old", "noarch", "1-1", false),
        package("same", "noarch", "1-1", false),
        package("web", "noarch", "1-1", false),
    ];
    let after = [
        package("kernel-core", "x86_64", "1-1", true),
        package("kernel-core", "x86_64", "2-1", true),
        package("lib", "x86_64", "2-1", false),
        package("new", "noarch", "1-1", false),
        package("same", "noarch", "1-1", false),
        package("web", "noarch", "2-1", false),
    ];
    let found = transaction(&before, &after);
    let lines: Vec<_> = found.install.iter().map(|one| (one.name.as_str(), one.from.as_deref(), &*one.to)).collect();
    let expected = [
        ("kernel-core@2-1", None, "2-1"),
        ("lib", Some("1-1"), "2-1"),
        ("new", None, "1-1"),
        ("web", Some("1-1"), "2-1"),
    ];
    assert_eq!((lines, found.remove), (expected.to_vec(), vec!["old".to_owned()]));
    assert_eq!(transaction(&after, &after), Transaction::default());
}
