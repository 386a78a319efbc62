/* The two backends of the proxy's bench: one thread, two ports, answers made beforehand.
 *
 *   backend PORT_A PORT_B COUNTS
 *
 * GET /64k is answered with 64 KiB, GET /echo with the head of the request as it came, any other path with 100 bytes; the
 * field X-Backend says which backend it was. COUNTS
 * is a file of two 64-bit numbers, the requests that each has answered so far; the bench maps it into its own memory, so
 * reading the counts disturbs nothing. Two calls per request, and waits shared by all connections: the core that it has
 * in common with the load generator is soon full. It knows no bodies of requests; none are sent. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 20000, /* a file descriptor is an index */
    HEAD_BYTES_MAX = 4096,   /* what the proxies add to a head of 60 bytes is well below 1 KiB */
    SMALL = 100,
    LARGE = 64 << 10,
};

struct answer {
    char *bytes;
    size_t length;
};

struct connection {
    int which;
    size_t held; /* of head */
    const struct answer *sending;
    size_t sent;
    char head[HEAD_BYTES_MAX + 1];
};

static struct connection *connections[CONNECTIONS_MAX];
static struct answer answers[2][2];
static struct answer echo; /* sent at once: it is small, and a check sends one request at a time */
static volatile uint64_t *counts;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct answer answer(int which, size_t body) {
    struct answer made = {malloc(body + 256), 0};
    int head = sprintf(made.bytes,
                       "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
                       "Content-Length: %zu\r\nX-Backend: %c\r\n\r\n",
                       body, 'a' + which);
    memset(made.bytes + head, 'x', body);
    made.length = head + body;
    return made;
}

static const struct answer *choose(const struct connection *c, const char *end) {
    if (c->held >= 9 && !memcmp(c->head, "GET /echo", 9)) {
        int length = end - c->head;
        echo.length = sprintf(echo.bytes, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Backend: %c\r\n\r\n%.*s", length,
                              'a' + c->which, length, c->head);
        return &echo;
    }
    return &answers[c->which][c->held >= 8 && !memcmp(c->head, "GET /64k", 8)];
}

static int listener(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) die("backend: listen");
    return fd;
}

static void watch(int epoll, int how, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, how, fd, &event)) die("backend: epoll_ctl");
}

/* Answers what has arrived, one request after the other. Returns 0 when the connection is of no more use. */
static int serve(int epoll, int fd, struct connection *c) {
    for (;;) {
        if (!c->sending) {
            char *end = memmem(c->head, c->held, "\r\n\r\n", 4);
            if (!end) {
                if (c->held == HEAD_BYTES_MAX) return 0;
                ssize_t got = read(fd, c->head + c->held, HEAD_BYTES_MAX - c->held);
                if (got < 0) return errno == EAGAIN || errno == EINTR;
                if (got == 0) return 0;
                c->held += got;
                end = memmem(c->head, c->held, "\r\n\r\n", 4);
                if (!end) return 1;
            }
            end += 4;
            c->sending = choose(c, end);
            c->sent = 0;
            c->held -= end - c->head;
            memmove(c->head, end, c->held);
        }
        ssize_t put = send(fd, c->sending->bytes + c->sent, c->sending->length - c->sent, MSG_NOSIGNAL);
        if (put < 0 && errno != EAGAIN) return 0;
        if (put > 0) c->sent += put;
        if (c->sent < c->sending->length) {
            watch(epoll, EPOLL_CTL_MOD, fd, EPOLLOUT);
            return 1;
        }
        if ((size_t)put < c->sending->length) watch(epoll, EPOLL_CTL_MOD, fd, EPOLLIN);
        c->sending = NULL;
        counts[c->which]++;
        if (c->held == 0) return 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: backend PORT_A PORT_B COUNTS\n");
        return 2;
    }
    int file = open(argv[3], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 16)) die("backend: counts");
    counts = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counts == MAP_FAILED) die("backend: counts");
    int epoll = epoll_create1(0), listeners[2];
    echo.bytes = malloc(HEAD_BYTES_MAX + 256);
    for (int which = 0; which < 2; which++) {
        answers[which][0] = answer(which, SMALL);
        answers[which][1] = answer(which, LARGE);
        listeners[which] = listener(atoi(argv[1 + which]));
        watch(epoll, EPOLL_CTL_ADD, listeners[which], EPOLLIN);
    }
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            struct connection *c = connections[fd];
            if (c) {
                if (!serve(epoll, fd, c)) {
                    free(c);
                    connections[fd] = NULL;
                    close(fd);
                }
                continue;
            }
            int which = fd == listeners[1], on = 1;
            int taken = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
            if (taken < 0) continue;
            if (taken >= CONNECTIONS_MAX || !(c = calloc(1, sizeof *c))) {
                close(taken);
                continue;
            }
            setsockopt(taken, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            c->which = which;
            connections[taken] = c;
            watch(epoll, EPOLL_CTL_ADD, taken, EPOLLIN);
        }
    }
}
