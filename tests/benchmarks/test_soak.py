from benchmarks.soak import Held, Soak


def test_one_look_at_many_connections_is_no_leak_and_a_steady_rise_is() -> None:
    steady = [Held(float(at), 100.0, 80, 20) for at in range(100)]
    peak = Soak(held=[*steady[:-1], Held(100.0, 100.0, 226, 40)], waits=[(1.0, 0.01)])
    rises = Soak(held=[Held(float(at), 100.0, 80 + at, 20 + at // 10) for at in range(100)], waits=[(1.0, 0.01)])
    for soak, good in ((peak, True), (rises, False)):
        rows = {what: fine for what, _, fine in soak.table()}
        assert (rows["descriptors"], rows["threads"]) == (good, good)
