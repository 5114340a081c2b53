// Takes a photo in a dialog of this page. On a phone (`inDialog` is false), the page opens the phone's camera app instead.

const dialog = document.getElementById("camera");
const video = dialog.querySelector("video");
const problem = dialog.querySelector(".problem");

export const inDialog = () => Boolean(navigator.mediaDevices?.getUserMedia) && !matchMedia("(pointer: coarse)").matches;

export async function photograph(taken) {
  let stream = null;
  problem.hidden = video.hidden = false;
  problem.textContent = "Waiting for the camera…";
  const take = dialog.querySelector("[data-take]");
  take.disabled = true;
  take.onclick = () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => taken(new File([blob], "photo.jpg", { type: "image/jpeg" })), "image/jpeg", 0.95);
    dialog.close();
  };
  dialog.querySelector("[data-close]").onclick = () => dialog.close();
  dialog.onclose = () => {
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (!dialog.open) return dialog.onclose();
    video.srcObject = stream;
    await video.play();
    problem.hidden = true;
    take.disabled = false;
    take.focus();
  } catch {
    video.hidden = true;
    problem.textContent = "The camera cannot be used here: there is none, or the browser does not let this page use it.";
  }
  return undefined;
}
