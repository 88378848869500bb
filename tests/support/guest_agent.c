/* The first process of the test guest: sends the heartbeat, then does over vsock what the test asks for, one command a
 * connection, each in a process of its own. Reads no input that a test did not write, so it checks little.
 *
 *   N <request>      one request to /dev/nsm; the response comes back. The request ends with the half close.
 *   E <data>         the data comes back; the half close ends it.
 *   C <cid> <port>   two little-endian numbers of 32 bits: connects there, answers one byte of errno, and if that is 0
 *                    carries data both ways, half closes included.
 *   P                powers off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 5000, HEARTBEAT_PORT = 9000, PARENT_CID = 3, MAX_REQUEST = 0x2000, MAX_RESPONSE = 0x3000 };
#define NSM_IOCTL 0xC0200A00u

struct nsm_message {
  uint64_t request, request_bytes, response, response_bytes;
};

static void power_off(void) {
  sync();
  reboot(LINUX_REBOOT_CMD_RESTART);
  for (;;) pause();
}

static void fail(const char *what) {
  printf("guest: %s: %s\n", what, strerror(errno));
  power_off();
}

static size_t read_all(int from, void *buffer, size_t size) {
  size_t done = 0;
  for (ssize_t got; done < size && (got = read(from, (char *)buffer + done, size - done)) > 0;) done += got;
  return done;
}

static int write_all(int to, const void *data, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t put = write(to, (const char *)data + done, size - done);
    if (put <= 0) return -1;
    done += put;
  }
  return 0;
}

static int dial(uint32_t cid, uint32_t port) {
  struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
  int out = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (out >= 0 && connect(out, (struct sockaddr *)&address, sizeof address) == 0) return out;
  int error = errno;
  if (out >= 0) close(out);
  errno = error;
  return -1;
}

static void ask_nsm(int connection) {
  static char request[MAX_REQUEST], response[MAX_RESPONSE];
  struct nsm_message message = {
      .request = (uintptr_t)request,
      .request_bytes = read_all(connection, request, sizeof request),
      .response = (uintptr_t)response,
      .response_bytes = sizeof response,
  };
  int device = open("/dev/nsm", O_RDWR);
  if (device >= 0 && ioctl(device, NSM_IOCTL, &message) == 0)
    write_all(connection, response, message.response_bytes);
  else
    dprintf(connection, "errno %d", errno);
}

static void copy(int from, int to) {
  static char buffer[65536];
  for (ssize_t got; (got = read(from, buffer, sizeof buffer)) > 0 && write_all(to, buffer, got) == 0;) {
  }
  shutdown(to, SHUT_WR);
}

static void carry(int connection) {
  uint32_t target[2];
  if (read_all(connection, target, sizeof target) != sizeof target) return;
  int out = dial(target[0], target[1]);
  char error = out < 0 ? (char)errno : 0;
  if (write_all(connection, &error, 1) != 0 || out < 0) return;
  if (fork() == 0) {
    copy(connection, out);
    _exit(0);
  }
  copy(out, connection);
  wait(NULL);
}

static void serve(int connection) {
  char command;
  if (read_all(connection, &command, 1) != 1) return;
  if (command == 'N') ask_nsm(connection);
  if (command == 'E') copy(connection, connection);
  if (command == 'C') carry(connection);
  if (command == 'P') power_off();
}

int main(void) {
  mkdir("/dev", 0755);
  if (mount("devtmpfs", "/dev", "devtmpfs", 0, "") != 0 && errno != EBUSY) power_off();
  int console = open("/dev/console", O_RDWR);
  if (console >= 0)
    for (int target = 0; target < 3; target++) dup2(console, target);
  setvbuf(stdout, NULL, _IONBF, 0);
  printf("guest: up\n");

  int parent = dial(PARENT_CID, HEARTBEAT_PORT);
  char beat = (char)0xB7;
  if (parent < 0 || write_all(parent, &beat, 1) != 0 || read_all(parent, &beat, 1) != 1 || beat != (char)0xB7)
    fail("heartbeat");
  close(parent);

  struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
  int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0)
    fail("listen");
  printf("guest: ready\n");
  signal(SIGCHLD, SIG_IGN);
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) fail("accept");
    if (fork() == 0) {
      signal(SIGCHLD, SIG_DFL);
      signal(SIGPIPE, SIG_IGN);
      serve(connection);
      _exit(0);
    }
    close(connection);
  }
}
