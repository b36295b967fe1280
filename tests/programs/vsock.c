/*
 * Sockets of a guest (AF_VSOCK, vsock(7)), for scripts:
 *
 *   vsock cid                       prints the guest's own context
 *   vsock listen PORT COMMAND...    runs the command for each connection, its input and output
 *   vsock connect CID PORT          sends its input, ends that direction, and prints what comes
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static void fail(const char *what)
{
	fprintf(stderr, "vsock: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned int number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text == '\0' || *end != '\0' || value > 0xffffffff) {
		errno = EINVAL;
		fail(text);
	}
	return value;
}

static struct sockaddr_vm address(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = cid,
		.svm_port = port,
	};

	return address;
}

static int cid(void)
{
	unsigned int cid;
	int device = open("/dev/vsock", O_RDONLY);

	if (device < 0)
		fail("/dev/vsock");
	if (ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
		fail("its context");
	printf("%u\n", cid);
	return 0;
}

static void __attribute__((noreturn)) serve(unsigned int port, char **command)
{
	struct sockaddr_vm here = address(VMADDR_CID_ANY, port);
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0)
		fail("socket");
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0)
		fail("bind");
	if (listen(listener, 128) < 0)
		fail("listen");
	/* Nobody waits for those that have ended. */
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (client < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			fail("accept");
		}
		if (fork() == 0) {
			signal(SIGCHLD, SIG_DFL);
			dup2(client, STDIN_FILENO);
			dup2(client, STDOUT_FILENO);
			execv(command[0], command);
			fail(command[0]);
		}
		close(client);
	}
}

static void write_all(int to, const char *bytes, size_t left)
{
	while (left > 0) {
		ssize_t count = write(to, bytes, left);

		if (count < 0)
			fail("write");
		bytes += count;
		left -= count;
	}
}

/* Two processes, so that neither direction waits for the other. */
static int relay(unsigned int cid, unsigned int port)
{
	static char bytes[1 << 16];
	struct sockaddr_vm there = address(cid, port);
	int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
	pid_t sender;
	ssize_t count;

	if (peer < 0)
		fail("socket");
	if (connect(peer, (struct sockaddr *)&there, sizeof(there)) < 0)
		fail("connect");
	sender = fork();
	if (sender < 0)
		fail("fork");
	if (sender == 0) {
		while ((count = read(STDIN_FILENO, bytes, sizeof(bytes))) > 0)
			write_all(peer, bytes, count);
		shutdown(peer, SHUT_WR);
		_exit(count < 0);
	}
	while ((count = read(peer, bytes, sizeof(bytes))) > 0)
		write_all(STDOUT_FILENO, bytes, count);
	kill(sender, SIGTERM);
	if (count < 0)
		fail("read");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "cid") == 0)
		return cid();
	if (argc >= 4 && strcmp(argv[1], "listen") == 0)
		serve(number(argv[2]), argv + 3);
	if (argc == 4 && strcmp(argv[1], "connect") == 0)
		return relay(number(argv[2]), number(argv[3]));
	fprintf(stderr, "vsock: wrong arguments\n");
	return 2;
}
