// Prometheus text → what one model did since the service started.

// Text → [{name, labels, value}], only the series of one model.
export function series(text, model, version) {
  const found = [];
  for (const line of text.split("\n")) {
    const [, name, written, value] = /^(\w+)\{(.*)\} (\S+)$/.exec(line) ?? [];
    if (!name) continue;
    const labels = Object.fromEntries([...written.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, text]));
    if (labels.model === model && labels.version === String(version)) found.push({ name, labels, value: Number(value) });
  }
  return found;
}

const total = (all, name, where = () => true) =>
  all.filter((each) => each.name === name && where(each.labels)).reduce((sum, { value }) => sum + value, 0);

// → {count, mean, bins: [{below, count}]}. A bin's count is its own, not cumulative as in Prometheus.
export function histogram(all, name) {
  const bins = all.filter((each) => each.name === `${name}_bucket`)
    .map(({ labels, value }) => ({ below: labels.le === "+Inf" ? Infinity : Number(labels.le), count: value })).sort((a, b) => a.below - b.below);
  for (let index = bins.length - 1; index > 0; index -= 1) bins[index].count -= bins[index - 1].count;
  const count = total(all, `${name}_count`);
  return { count, mean: count ? total(all, `${name}_sum`) / count : 0, bins };
}

// The upper bound of the bin in which the cumulative count reaches the share.
export function quantile({ count, bins }, share) {
  let below = 0;
  return bins.find((bin) => { below += bin.count; return below >= share * count; })?.below ?? Infinity;
}

export function summary(all) {
  const bad = (labels) => Number(labels.status) >= 400;
  const [run, queue, decode, batch] = ["graft_run_seconds", "graft_queue_seconds", "graft_decode_seconds", "graft_batch_images"].map((name) => histogram(all, name));
  return {
    requests: total(all, "graft_requests_total"), refused: total(all, "graft_requests_total", bad),
    images: batch.count * batch.mean, together: batch.mean, run, queue, decode,
    score: histogram(all, "graft_anomaly_score"), confidence: histogram(all, "graft_confidence"),
  };
}
