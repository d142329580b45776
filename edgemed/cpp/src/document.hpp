// A bundle's JSON documents: read strictly, and believed only in the one form that edgemed writes (manifest.py).
//
// A reader goes through the fields of an object, checks each, and writes into the document what edgemed would have
// written (a number that is a float as a float, an optional field that is missing as null). The document's canonical
// bytes then have to be the very bytes that were read.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "files.hpp"

namespace edgemed::impl {

using Json = nlohmann::json;

// UTF-8, sorted keys, two spaces of indent, numbers as Python prints them, one final newline.
std::string canonical_bytes(const Json& document);

// The JSON document in `data`, the content of `where`. Throws Error where it is none, or of a newer schema.
Json json_from(const Bytes& data, const std::string& where);

// What is wrong with one field: becomes "WHERE is not valid: PLACE: TEXT; build the bundle again".
struct FieldError : std::runtime_error {
    FieldError(const std::string& place, const std::string& text);
};

// The fields of one JSON object. Every function throws FieldError where the field is missing or wrong.
class Fields {
public:
    Fields(Json& object, std::string place);

    std::string text(const char* name);                     // what prints, without space around it
    std::string choice(const char* name, std::initializer_list<const char*> known);
    std::string matching(const char* name, const char* what, bool (*fits)(const std::string&));
    int64_t integer(const char* name, int64_t low, int64_t high);
    double number(const char* name, double low, double high);
    bool flag(const char* name);                            // true; false is what is missing, and is not written
    bool null(const char* name);                            // null, or missing, which then becomes null
    Json& at(const char* name);                             // any value
    Json& array(const char* name);
    Json& object(const char* name);
    std::vector<std::string> texts(const char* name, size_t at_least);
    std::vector<double> numbers(const char* name);
    void range(const char* name, int64_t (&values)[3]);     // min, opt, max
    std::string place(const std::string& name) const { return place_.empty() ? name : place_ + "." + name; }
    void done() const;                                      // refuses fields that nobody asked for

private:
    Json& object_;
    std::string place_;
    std::set<std::string> known_;
};

bool is_sha256(const std::string& text);
bool is_time(const std::string& text);
bool is_visible(const std::string& text);

// The text itself where it is visible, else with escapes: for messages.
std::string printable(const std::string& text);

// Runs `read` on the document in `data` and gives its result, if the document is in canonical form.
template <typename Read>
auto document_from(const Bytes& data, const std::string& where, Read read) {
    Json document = json_from(data, where);
    try {
        auto result = read(document);
        const std::string canonical = canonical_bytes(document);
        if (canonical.size() != data.size() || !std::equal(data.begin(), data.end(), canonical.begin(),
                                                           [](uint8_t a, char b) { return a == uint8_t(b); }))
            throw Error(EDGEMED_ERROR_BUNDLE, where + " was changed after the build; " + again);
        return result;
    } catch (const FieldError& error) {
        throw Error(EDGEMED_ERROR_BUNDLE, where + " is not valid: " + error.what() + "; build the bundle again");
    }
}

}  // namespace edgemed::impl
